//! Whose a circuit is: what the name of its breaker tells.

/// A circuit's place, which the name of its breaker tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) provider: &'a str,
    /// `None`: it is the provider's own, or that of one of its keys.
    pub(crate) model: Option<&'a str>,
    /// The kind of answer, or which key.
    pub(crate) kind: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// Of `a`, `a, key 2` or `a, model, stream`. No provider's name has a space in it.
    pub(crate) fn of(name: &'a str) -> Self {
        let Some((provider, rest)) = name.split_once(", ") else {
            return Self { provider: name, model: None, kind: None };
        };
        match rest.rsplit_once(", ") {
            Some((model, kind)) => Self { provider, model: Some(model), kind: Some(kind) },
            None => Self { provider, model: None, kind: Some(rest) },
        }
    }
}

/// The name of a circuit without the mark that it has in a fleet.
pub(crate) fn unmarked(shared: &str) -> &str {
    shared.rsplit_once('#').map_or(shared, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_breaker_tells_its_place() {
        let place = |name| {
            let Place { provider, model, kind } = Place::of(name);
            (provider, model, kind)
        };
        assert_eq!(place("a"), ("a", None, None));
        assert_eq!(place("a, key 2"), ("a", None, Some("key 2")));
        assert_eq!(place("a, m, whole"), ("a", Some("m"), Some("whole")));
        assert_eq!(place("a, x, y, z, stream"), ("a", Some("x, y, z"), Some("stream")));
        assert_eq!(place("a,, , whole"), ("a,", Some(""), Some("whole")));
    }
}
