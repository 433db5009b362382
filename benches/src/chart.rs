//! Throughput over threads, drawn.

use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, IntoDrawingArea, IntoFont, IntoLogRange, LineSeries, Palette, Palette99,
    PathElement, SVGBackend, SeriesLabelPosition, WHITE,
};

use crate::report::{Row, Spread};

/// One line for each contender.
pub(crate) fn throughput(title: &str, contenders: &[&Row]) -> Result<String, String> {
    let mut svg = String::new();
    draw(&mut svg, title, contenders).map_err(|error| format!("cannot draw the chart: {error}"))?;
    Ok(svg)
}

fn draw(svg: &mut String, title: &str, contenders: &[&Row]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let medians = |row: &Row| -> Vec<(f64, f64)> {
        row.cells.iter().map(|cell| (f64::from(cell.threads), cell.median())).collect()
    };
    let all: Vec<(f64, f64)> = contenders.iter().flat_map(|row| medians(row)).collect();
    let x = Spread::of(all.iter().map(|point| point.0));
    let y = Spread::of(all.iter().map(|point| point.1));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22).into_font())
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((x.min * 0.9..x.max * 1.1).log_scale(), (y.min / 2.0..y.max * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("threads on one breaker")
        .y_desc("million calls per second, all threads (logarithmic)")
        .x_label_formatter(&|threads| format!("{threads:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (n, row) in contenders.iter().enumerate() {
        let colour = Palette99::pick(n).to_rgba();
        let points = medians(row);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(row.contender)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}
