//! `target/demo/report.json`: the tables, the matrices and the times, for programs.

use crate::matrix::Matrix;
use cug_tests::server::Session;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that the demo found.
#[derive(Serialize, Default)]
pub struct Report {
    /// Everything was right.
    pub ok: bool,
    /// What was not.
    pub error: Option<String>,
    /// From the first host to the last check.
    pub seconds: f64,
    steps: Vec<Step>,
    tables: BTreeMap<String, Vec<Session>>,
    matrices: BTreeMap<String, Matrix>,
    /// Milliseconds by what was measured.
    pub measured_ms: BTreeMap<String, f64>,
    /// What else was checked, and how it came out.
    pub checks: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Step {
    what: String,
    ms: f64,
}

/// Where the demo keeps its files.
pub fn directory() -> PathBuf {
    let programs = cug_tests::paths::programs();
    programs.parent().unwrap_or(&programs).join("demo")
}

impl Report {
    /// A step took this long.
    pub fn step(&mut self, what: &str, took: Duration) {
        self.steps.push(Step { what: what.to_owned(), ms: took.as_secs_f64() * 1000.0 });
    }

    /// The server's table at this point.
    pub fn table(&mut self, name: &str, rows: &[Session]) {
        self.tables.insert(name.to_owned(), rows.to_vec());
    }

    /// Who reached whom at this point.
    pub fn matrix(&mut self, name: &str, matrix: &Matrix) {
        self.matrices.insert(name.to_owned(), matrix.clone());
    }

    /// Something was measured.
    pub fn measured(&mut self, what: &str, took: Duration) {
        self.measured_ms.insert(what.to_owned(), took.as_secs_f64() * 1000.0);
    }

    /// Something was checked.
    pub fn checked(&mut self, what: &str, how: &str) {
        self.checks.insert(what.to_owned(), how.to_owned());
    }

    /// Writes it.
    pub fn write(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(directory())?;
        Ok(std::fs::write(directory().join("report.json"), serde_json::to_string_pretty(self)? + "\n")?)
    }
}
