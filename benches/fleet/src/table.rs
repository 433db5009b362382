//! What stands in a cell of a table.

/// The mean, the median and the worst.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
pub(crate) fn summary(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (mean, values[values.len() / 2], values[values.len() - 1])
}

pub(crate) fn shown((mean, median, worst): (f64, f64, f64), digits: usize) -> String {
    format!("{mean:.digits$} {median:.digits$} {worst:.digits$}")
}
