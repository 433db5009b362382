//! What no answer may show: a provider's error may quote its request.
//!
//! Not here: which answers are searched: `route::ask` and `route::judge`.

use bytes::Bytes;
use http::HeaderValue;
use memchr::memmem;

use crate::proxy::config::Secret;

/// A secret that is looked for in every answer. Preparing the search takes as long as searching a short answer.
pub(super) struct Hidden(memmem::Finder<'static>);

impl Hidden {
    pub(super) fn new(secret: &Secret) -> Self {
        Self(memmem::Finder::new(secret.expose()).into_owned())
    }

    /// `text` with stars in place of the secret.
    pub(super) fn strike_out(&self, text: Bytes) -> Bytes {
        let Some(first) = self.0.find(&text) else { return text };
        let mut struck_out = text.to_vec();
        for at in self.0.find_iter(&text[first..]) {
            struck_out[first + at..][..self.0.needle().len()].fill(b'*');
        }
        struck_out.into()
    }

    /// A header's value with stars in place of the secret. `None` if the value does not contain it.
    pub(super) fn strike_out_of(&self, value: &HeaderValue) -> Option<HeaderValue> {
        self.0.find(value.as_bytes())?;
        let struck_out = self.strike_out(Bytes::copy_from_slice(value.as_bytes()));
        Some(HeaderValue::from_bytes(&struck_out).expect("stars are valid in a header"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_struck_out_wherever_it_stands_and_all_else_stays() {
        let hidden = Hidden::new(&Secret::new("secret".into()).unwrap());
        for (text, shown) in [("", ""), ("a secret and a secret", "a ****** and a ******"), ("secre", "secre")] {
            assert_eq!(hidden.strike_out(Bytes::from_static(text.as_bytes())), shown);
        }
        let value = |text| HeaderValue::from_static(text);
        assert_eq!(hidden.strike_out_of(&value("Bearer secret")), Some(value("Bearer ******")));
        assert_eq!(hidden.strike_out_of(&value("Bearer")), None);
    }
}
