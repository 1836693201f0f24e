//! Distributions, and the report.

use serde::Serialize;
use std::time::Duration;

/// Some measurements of one thing, in the order in which they were taken.
#[derive(Clone, Serialize)]
pub struct Sample(Vec<f64>);

impl FromIterator<Duration> for Sample {
    fn from_iter<T: IntoIterator<Item = Duration>>(durations: T) -> Self {
        Self(durations.into_iter().map(|duration| duration.as_secs_f64() * 1000.0).collect())
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// All measurements of some samples.
impl<'a> FromIterator<&'a Sample> for Sample {
    fn from_iter<T: IntoIterator<Item = &'a Self>>(samples: T) -> Self {
        Self(samples.into_iter().flat_map(|sample| sample.0.iter().copied()).collect())
    }
}

impl Sample {
    /// The value below which this part (0 to 1) of all lies.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = ((sorted.len() as f64) * part).ceil() as usize;
        sorted.get(index.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    /// Half are smaller.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// 99 of 100 are smaller.
    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    /// Each so many times as large.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|value| value * factor).collect())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A line of the report.
#[derive(Serialize)]
pub struct Row {
    /// Which benchmark, `B1` to `B9`.
    pub bench: &'static str,
    /// What was measured.
    pub what: String,
    /// The figure, in words.
    pub figure: String,
    /// What it was measured against, and its figure.
    pub beside: String,
    /// The figure by what is beside it, or by its limit: below 1 is better. None where nothing is beside it.
    pub ratio: Option<f64>,
    /// What was aimed at.
    pub aim: String,
    /// Whether that was reached.
    pub reached: Option<bool>,
}

/// All of it.
#[derive(Serialize, Default)]
pub struct Report {
    /// Machine, versions and date.
    pub about: Vec<(String, String)>,
    /// The table.
    pub rows: Vec<Row>,
    /// Every single measurement, by name. Times are in milliseconds.
    pub raw: Vec<(String, Sample)>,
    /// Figures against sizes, by name.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
    /// Benchmarks that could not be run, and why.
    pub failed: Vec<(String, String)>,
}

impl Report {
    /// Adds a row and prints it.
    pub fn row(&mut self, row: Row) {
        let reached = row.reached.map_or("", |reached| if reached { "reached" } else { "NOT reached" });
        let ratio = row.ratio.map_or(String::new(), |ratio| format!("ratio {ratio:.2}"));
        println!("{:4} {}: {}  [{}] {ratio}  aim {} {reached}", row.bench, row.what, row.figure, row.beside, row.aim);
        self.rows.push(row);
    }

    /// Keeps the single measurements.
    pub fn keep(&mut self, name: impl Into<String>, sample: &Sample) {
        self.raw.push((name.into(), sample.clone()));
    }

    /// Adds a point to a curve.
    pub fn point(&mut self, name: &str, x: f64, y: f64) {
        match self.curves.iter_mut().find(|(curve, _)| curve == name) {
            Some((_, points)) => points.push((x, y)),
            None => self.curves.push((name.to_owned(), vec![(x, y)])),
        }
    }
}

impl Report {
    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let mut table = String::from("| | what | figure | beside | ratio | aim | |\n|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let reached = row.reached.map_or("", |reached| if reached { "yes" } else { "no" });
            let line = [row.bench, &row.what, &row.figure, &row.beside, &ratio, &row.aim, reached].join(" | ");
            table.push_str(&format!("| {line} |\n"));
        }
        table
    }
}
