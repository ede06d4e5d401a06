//! What a measurement prints and keeps.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::json;

use crate::facts::{self, HostFacts};
use crate::statistics::Summary;

/// Prints for people, and writes JSON lines for programs: a line with the host, one for each run, one with the
/// load at the end.
#[derive(Debug)]
pub struct Report {
    json: Option<File>,
    host: String,
}

impl Report {
    /// Begins; with the command line that is measured.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn begin(json: Option<&Path>) -> Result<Self> {
        let create =
            |path: &Path| File::create(path).with_context(|| format!("can't write {}", path.display()));
        let json = json.map(create).transpose()?;
        let facts = HostFacts::gather();
        let mut report = Self { json, host: facts.to_string() };
        say(&report.host);
        let command: Vec<_> = std::env::args().skip(1).collect();
        report.line(&json!({ "command": command, "host": facts }))?;
        Ok(report)
    }

    /// The machine, in a line.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Keeps what a run gave.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let Some(file) = &mut self.json else { return Ok(()) };
        let mut text = serde_json::to_vec(value)?;
        text.push(b'\n');
        file.write_all(&text).context("can't write the JSON lines")
    }

    /// Prints text on standard output.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn print(&self, text: &str) -> Result<()> {
        Ok(writeln!(io::stdout(), "{text}")?)
    }

    /// Ends: says what was wrong, and whether that was nothing.
    ///
    /// # Errors
    /// A file or standard output can't be written.
    pub fn end(mut self, problems: &[String]) -> Result<bool> {
        let load = facts::load();
        self.line(&json!({ "load_after": load, "problems": problems }))?;
        let verdict = match problems {
            [] => "nothing was lost".to_owned(),
            _ => format!("LOST OR WRONG:\n  - {}", problems.join("\n  - ")),
        };
        self.print(&format!("\nload at the end {load:.2}; {verdict}"))?;
        Ok(problems.is_empty())
    }
}

/// Tells whoever watches; standard output is for the report.
pub fn say(text: &str) {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A table in Markdown.
#[must_use]
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.iter().copied());
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    table.trim_fmt()
}

/// One measure in a table of summaries.
#[derive(Clone, Copy, Debug)]
pub struct Measure<T> {
    /// Name and unit.
    pub name: &'static str,
    /// The number, where a run has it.
    pub of: fn(&T) -> Option<f64>,
    /// Digits behind the point.
    pub digits: usize,
    /// What the median should be; empty where nothing is asked for.
    pub aim: &'static str,
}

/// A table of summaries: a row for each measure of each variant.
#[must_use]
pub fn summaries<T>(variants: &[(String, Vec<T>)], measures: &[Measure<T>]) -> String {
    let mut rows = Vec::new();
    for measure in measures {
        for (variant, runs) in variants {
            let Some(summary) = Summary::of(runs.iter().filter_map(measure.of)) else { continue };
            rows.push(row(measure.name, variant, &summary, measure.digits, measure.aim));
        }
    }
    table(&["measure", "variant", "n", "min", "P25", "median", "P75", "max", "aim"], rows)
}

fn row(name: &str, variant: &str, summary: &Summary, digits: usize, aim: &str) -> Vec<String> {
    let Summary { count, min, p25, median, p75, max } = *summary;
    let numbers = [min, p25, median, p75, max].map(|number| format!("{number:.digits$}"));
    [name.to_owned(), variant.to_owned(), count.to_string()]
        .into_iter()
        .chain(numbers)
        .chain([aim.to_owned()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_that_no_run_has_is_left_out() {
        let variants = [("x".to_owned(), vec![1.0, 2.0, 3.0])];
        let there: Measure<f64> = Measure { name: "twice", of: |run| Some(run * 2.0), digits: 1, aim: "< 5" };
        let not_there: Measure<f64> = Measure { name: "nothing", of: |_| None, digits: 1, aim: "< 5" };
        let text = summaries(&variants, &[there, not_there]);
        assert!(text.contains("| twice   | x       | 3 | 2.0 | 3.0 | 4.0    | 5.0 | 6.0 | < 5 |"), "{text}");
        assert!(!text.contains("nothing"), "{text}");
    }

    #[test]
    fn the_lines_are_json() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lines");
        let mut report = Report::begin(Some(&file)).unwrap();
        report.line(&json!({ "run": 1 })).unwrap();
        assert!(!report.end(&["a page".to_owned()]).unwrap());
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines[0]["host"]["cores"].as_u64().unwrap() > 0);
        assert_eq!((&lines[1]["run"], &lines[2]["problems"][0]), (&json!(1), &json!("a page")));
    }
}
