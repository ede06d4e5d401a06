//! Charts of lines, drawn as SVG.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::axis::{Axis, range};

/// Size of a chart in pixels.
const SIZE: (u32, u32) = (960, 540);
/// Room for the names of lines at the right, as a share of what the x axis has to show.
const NAMES: f64 = 0.25;

/// A row of points, joined; and points that are only marked.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Drawn as crosses.
    pub(super) marks: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Parts of the x axis that are shaded, with their name.
    pub(super) bands: Vec<(String, f64, f64)>,
}

impl Chart {
    /// Draws charts below each other to a file.
    pub(super) fn draw(charts: &[Self], file: &Path) -> Result<()> {
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        let drawn = area
            .fill(&WHITE)
            .map_err(|error| anyhow!("{error}"))
            .and_then(|()| {
                let areas = area.split_evenly((charts.len().max(1), 1));
                charts.iter().zip(&areas).try_for_each(|(chart, area)| chart.draw_on(area))
            })
            .and_then(|()| area.present().map_err(|error| anyhow!("{error}")));
        drawn.with_context(|| format!("can't draw {}", file.display()))
    }

    fn draw_on(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{error}");
        let all = || self.lines.iter().flat_map(|line| line.points.iter().chain(&line.marks));
        let (left, right) = range(all().filter_map(|(x, _)| self.x.place(*x)));
        let right = right + (right - left) * NAMES;
        let (low, high) = range(all().filter_map(|(_, y)| self.y.place(*y)));
        let low = if self.y.logarithmic { low } else { low.min(0.0) };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(self.x.clone().scaled(left, right), self.y.clone().scaled(low, high))
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(&self.x.name)
            .y_desc(&self.y.name)
            .draw()
            .map_err(failed)?;
        for (name, from, to) in &self.bands {
            let (Some(from), Some(to)) = (self.x.place(*from), self.x.place(*to)) else { continue };
            let band = [Rectangle::new([(from, low), (to, high)], RED.mix(0.25).filled())];
            chart
                .draw_series(band)
                .map_err(failed)?
                .label(name)
                .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], RED.mix(0.25).filled()));
        }
        for (index, line) in self.lines.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let placed = |points: &[(f64, f64)]| -> Vec<_> {
                points.iter().filter_map(|(x, y)| Some((self.x.place(*x)?, self.y.place(*y)?))).collect()
            };
            chart
                .draw_series(LineSeries::new(placed(&line.points), colour.stroke_width(2)))
                .map_err(failed)?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            // A line of one point has no length.
            let alone = placed(&line.points).into_iter().filter(|_| line.points.len() == 1);
            chart.draw_series(alone.map(|at| Circle::new(at, 3, colour.filled()))).map_err(failed)?;
            let crosses = placed(&line.marks).into_iter().map(|at| Cross::new(at, 6, colour.stroke_width(2)));
            chart.draw_series(crosses).map_err(failed)?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(failed)
    }
}
