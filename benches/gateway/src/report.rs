//! Medians, and what was around them.

use std::fmt;

/// Of the rounds.
pub(crate) struct Spread {
    pub(crate) median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().wrapping_sub(1)) }
    }
}

/// `{:.2}` is for digits, `{:#}` for the median alone.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = self;
        let digits = f.precision().unwrap_or(2);
        if median.is_nan() {
            f.write_str("-")
        } else if f.alternate() {
            write!(f, "{median:.digits$}")
        } else {
            write!(f, "{median:.digits$} ({min:.digits$}-{max:.digits$})")
        }
    }
}

pub(crate) fn head(title: &str, columns: &[&str]) {
    println!("\n{title}\n\n| | {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len() + 1));
}

pub(crate) fn row(name: &str, cells: &[String]) {
    println!("| {name} | {} |", cells.join(" | "));
}
