//! Throughput over threads, drawn.

use plotters::prelude::{
    ChartBuilder, Circle, Color, IntoDrawingArea, IntoFont, IntoLogRange, LineSeries, RGBColor, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Cell, Row, Spread};

const SIZE: (u32, u32) = (960, 600);
const ROOM_FOR_NAMES: u32 = 230;
const LINE_HEIGHT: i32 = 17;

/// One line for each contender, with its name at the end of it.
pub(crate) fn throughput(title: &str, contenders: &[&Row]) -> Result<String, String> {
    let mut svg = String::new();
    draw(&mut svg, title, contenders).map_err(|error| format!("cannot draw the chart: {error}"))?;
    Ok(svg)
}

fn draw(svg: &mut String, title: &str, contenders: &[&Row]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let cells = &contenders[0].cells;
    let y = Spread::of(contenders.iter().flat_map(|row| row.cells.iter().map(Cell::median)));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(12)
        .margin_right(ROOM_FOR_NAMES)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0..cells.len() - 1, (y.min / 2.0..y.max * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(cells.len())
        .x_label_formatter(&|place| cells[*place].threads.to_string())
        .x_desc("threads")
        .y_desc("million calls per second, of all threads together (logarithmic)")
        .y_label_formatter(&f64::to_string)
        .label_style(("sans-serif", 14))
        .light_line_style(WHITE)
        .draw()?;
    let mut ends = Vec::new();
    for row in contenders {
        let Style { colour, width } = Style::of(row.contender);
        let points: Vec<_> = row.cells.iter().map(Cell::median).enumerate().collect();
        let end = chart.backend_coord(&points[points.len() - 1]);
        ends.push((end, row.contender, colour));
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(width)))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, width + 1, colour.filled())))?;
    }
    // From the top: a name whose line ends too near to the one above it moves down.
    ends.sort_by_key(|((_, y), ..)| *y);
    let mut free = 0;
    for ((x, y), name, colour) in ends {
        let y = y.max(free);
        free = y + LINE_HEIGHT;
        let style = ("sans-serif", 14).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(name.replace(['*', '`'], ""), (x + 14, y), style))?;
    }
    root.present()?;
    Ok(())
}

struct Style {
    colour: RGBColor,
    width: u32,
}

impl Style {
    /// Ours stand out, and floors stand back.
    fn of(contender: &str) -> Self {
        let (colour, width) = if contender.starts_with("**") {
            (RGBColor(200, 40, 20), 4)
        } else if contender.starts_with("fusebox") {
            (RGBColor(230, 110, 60), 2)
        } else if contender.starts_with("floor") {
            (RGBColor(140, 140, 140), 1)
        } else {
            (RGBColor(40, 80, 140), 1)
        };
        Self { colour, width }
    }
}
