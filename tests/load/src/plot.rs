//! Curves as SVG, in some hundred lines of text.

use std::fmt::Write as _;

/// Outer size, and the margins around the axes.
const SIZE: (f64, f64) = (720.0, 420.0);
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;

const COLOURS: [&str; 4] = ["#0b5fa5", "#c2410c", "#15803d", "#6b21a8"];

/// How an axis is divided.
#[derive(Clone, Copy, PartialEq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By powers of ten.
    Log,
}

/// One line of a picture.
pub struct Series {
    /// What it is.
    pub name: String,
    /// Its points, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// A picture.
pub struct Chart<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below the x axis.
    pub x: (&'a str, Scale),
    /// Beside the y axis.
    pub y: (&'a str, Scale),
    /// The lines.
    pub series: Vec<Series>,
}

struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        match scale {
            Scale::Linear => Self { scale, from: 0.0, to: if most > 0.0 { most * 1.05 } else { 1.0 } },
            Scale::Log => {
                let (from, to) = (least.max(1e-9).log10().floor(), most.max(1e-9).log10().ceil());
                Self { scale, from, to: if to > from { to } else { from + 1.0 } }
            }
        }
    }

    /// Where a value lies, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Log { value.max(1e-9).log10() } else { value };
        (value - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.scale == Scale::Log {
            let (from, to) = (self.from as i32, self.to as i32);
            return (from..=to).map(|power| 10f64.powi(power)).collect();
        }
        let rough = self.to / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
        (0..=(self.to / step) as i32).map(|n| f64::from(n) * step).collect()
    }
}

fn number(value: f64) -> String {
    if value.fract() != 0.0 {
        return format!("{value}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Chart<'_> {
    /// The picture.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(self.x.1, points().map(|point| point.0));
        let y = Axis::new(self.y.1, points().map(|point| point.1));
        let across = |value: f64| LEFT + x.at(value) * (SIZE.0 - LEFT - RIGHT);
        let up = |value: f64| SIZE.1 - BOTTOM - y.at(value) * (SIZE.1 - TOP - BOTTOM);
        let mut svg = String::new();
        let mut add = |line: String| {
            let _ = writeln!(svg, "{line}");
        };
        add(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">",
            SIZE.0, SIZE.1
        ));
        add("<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>".into());
        add(text(LEFT, 22.0, "start", &format!("<tspan font-size=\"15\">{}</tspan>", escaped(self.title))));
        for tick in x.ticks() {
            add(line(across(tick), TOP, across(tick), SIZE.1 - BOTTOM));
            add(text(across(tick), SIZE.1 - BOTTOM + 18.0, "middle", &number(tick)));
        }
        for tick in y.ticks() {
            add(line(LEFT, up(tick), SIZE.0 - RIGHT, up(tick)));
            add(text(LEFT - 8.0, up(tick) + 4.0, "end", &number(tick)));
        }
        add(text((LEFT + SIZE.0 - RIGHT) / 2.0, SIZE.1 - 18.0, "middle", &escaped(self.x.0)));
        let middle = (TOP + SIZE.1 - BOTTOM) / 2.0;
        let turned = format!(
            "<g transform=\"rotate(-90 16 {middle})\">{}</g>",
            text(16.0, middle, "middle", &escaped(self.y.0))
        );
        add(turned);
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let path: Vec<_> = series.points.iter().map(|(a, b)| format!("{:.1},{:.1}", across(*a), up(*b))).collect();
            add(format!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                path.join(" ")
            ));
            if series.points.len() <= 20 {
                for (a, b) in &series.points {
                    add(format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>", across(*a), up(*b)));
                }
            }
            let name = format!("<tspan fill=\"{colour}\">{}</tspan>", escaped(&series.name));
            add(text(LEFT + 12.0, TOP + 16.0 + 17.0 * index as f64, "start", &name));
        }
        add("</svg>".into());
        svg
    }
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64) -> String {
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>")
}

fn text(x: f64, y: f64, anchor: &str, content: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222\">{content}</text>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_their_values_are() {
        let points = vec![(10.0, 1.0), (100.0, 10.0), (1000.0, 100.0)];
        let series = vec![Series { name: "a < b".into(), points }];
        let chart = Chart { title: "t", x: ("x", Scale::Log), y: ("y", Scale::Log), series };
        let svg = chart.svg();
        assert!(svg.contains("points=\"70.0,360.0 385.0,200.0 700.0,40.0\""), "{svg}");
        assert!(svg.contains("a &lt; b") && svg.contains(">1,000<"), "{svg}");
    }

    #[test]
    fn an_even_axis_begins_at_zero_and_has_round_ticks() {
        let axis = Axis::new(Scale::Linear, [40.0, 87.0].into_iter());
        assert_eq!(axis.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(axis.at(0.0), 0.0);
    }
}
