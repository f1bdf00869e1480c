//! Medians and spreads of repeated measurements.

use serde::Serialize;

/// The middle of several values, and the least and the largest of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    /// All zero of no values.
    pub(super) fn of(values: &[f64]) -> Self {
        Self {
            median: median(values),
            least: percentile(values, 0.0),
            most: percentile(values, 100.0),
        }
    }

    /// Of `values[i] / base[i]`: neighbours in time, so that a slower hour does not count.
    pub(super) fn of_ratios(values: &[f64], base: &[f64]) -> Self {
        let ratios: Vec<f64> = values.iter().zip(base).map(|(v, b)| v / b).collect();
        Self::of(&ratios)
    }
}

/// The middle value; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.get(values.len() / 2)) {
        (length, Some(&upper)) if length % 2 == 0 => f64::midpoint(values[length / 2 - 1], upper),
        (_, Some(&middle)) => middle,
        (_, None) => 0.0,
    }
}

/// The value below which `percent` of all lie, itself one of them; 0 of none.
pub(super) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
    let index = rank.saturating_sub(1);
    values.get(index).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the median of odd, even and no values.
    #[test]
    fn the_median_is_the_middle() {
        let shown = [&[3.0, 1.0, 2.0][..], &[4.0, 1.0, 2.0, 3.0], &[]].map(median);
        assert_eq!(shown.map(|m| format!("{m}")), ["2", "2.5", "0"]);
    }

    /// Check percentiles by nearest rank.
    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        let shown = [0.0, 50.0, 99.0, 100.0].map(|p| percentile(&values, p));
        assert_eq!(shown.map(|v| format!("{v}")), ["1", "100", "198", "200"]);
    }

    /// Check that ratios are of neighbours.
    #[test]
    fn ratios_are_of_neighbours() {
        let ratios = Spread::of_ratios(&[9.0, 20.0, 30.0], &[10.0, 20.0, 20.0]);
        let shown = [ratios.least, ratios.median, ratios.most].map(|r| format!("{r}"));
        assert_eq!(shown, ["0.9", "1", "1.5"]);
    }
}
