//! Axes whose ticks are round numbers, linear or logarithmic.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Most ticks on an axis of less than a decade, or a linear one.
const TICKS: f64 = 8.0;

/// An axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) name: String,
    /// Whether equal factors are equally far apart; nothing at or below zero has a place then.
    pub(super) logarithmic: bool,
}

impl Axis {
    pub(super) fn linear(name: &str) -> Self {
        Self { name: name.into(), logarithmic: false }
    }

    pub(super) fn logarithmic(name: &str) -> Self {
        Self { name: name.into(), logarithmic: true }
    }

    /// Where a value lies.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = if self.logarithmic { value.log10() } else { value };
        place.is_finite().then_some(place)
    }

    fn label(&self, place: f64) -> String {
        let value = if self.logarithmic { 10f64.powf(place) } else { place };
        // Enough digits to tell ticks apart, none of rounding.
        let digits = (2.0 - value.abs().max(1e-9).log10().floor()).clamp(0.0, 6.0) as usize;
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    }

    /// Ticks between two places: whole multiples of 1, 2 or 5 times a power of ten.
    fn ticks(&self, from: f64, to: f64) -> Vec<f64> {
        if self.logarithmic && to - from > 0.7 {
            let decades = from.floor() as i32..=to.ceil() as i32;
            let in_decade = |decade: i32| [1.0, 2.0, 5.0].map(|n: f64| f64::from(decade) + n.log10());
            return decades.flat_map(in_decade).filter(|tick| (from..=to).contains(tick)).collect();
        }
        let (low, high) = if self.logarithmic { (10f64.powf(from), 10f64.powf(to)) } else { (from, to) };
        let power = 10f64.powf(((high - low) / TICKS).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|n| n * power);
        let step = steps.into_iter().find(|step| (high - low) / step <= TICKS).unwrap_or(10.0 * power);
        let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
        (first..=last).filter_map(|n| self.place(n as f64 * step)).collect()
    }

    /// The axis from one place to another.
    pub(super) fn scaled(self, from: f64, to: f64) -> Scale {
        let ticks = self.ticks(from, to);
        Scale { axis: self, from, to, ticks }
    }
}

/// An axis with its ends, as plotters draws it.
pub(super) struct Scale {
    axis: Axis,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (place - self.from) / (self.to - self.from);
        first + (f64::from(last - first) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.bold_points() == 0 { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, place: &f64) -> String {
        self.axis.label(*place)
    }
}

/// What an axis has to show, with a little room on both sides.
pub(super) fn range(places: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), at| (low.min(at), high.max(at)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-3);
    (low - room, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let labels = |axis: &Axis, from: f64, to: f64| -> Vec<String> {
            axis.ticks(from, to).iter().map(|tick| axis.label(*tick)).collect()
        };
        let (linear, log) = (Axis::linear(""), Axis::logarithmic(""));
        assert_eq!(labels(&linear, -0.1, 1.05), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(&linear, 0.0, 41_000.0).last().unwrap(), "40000");
        assert_eq!(labels(&log, 1.9, 4.1), ["100", "200", "500", "1000", "2000", "5000", "10000"]);
        assert_eq!(labels(&log, 0.31, 0.48), ["2.2", "2.4", "2.6", "2.8", "3"], "less than a decade");
        assert_eq!(log.place(0.0), None);
    }

    #[test]
    fn a_range_of_nothing_and_of_one_point() {
        assert_eq!(range([].into_iter()), (0.0, 1.0));
        let (low, high) = range([2.0].into_iter());
        assert!(low < 2.0 && high > 2.0);
    }
}
