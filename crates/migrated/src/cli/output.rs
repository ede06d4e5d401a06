use std::io::{self, Write};

use anyhow::Result;
use comfy_table::{Table, presets};
use migrated_api::{Problem, Reason};
use serde::Serialize;
use serde_json::json;

use super::cpu::report;
use crate::client::ApiClientError;

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// As JSON, for programs.
    pub json: bool,
}

impl Output {
    /// Prints text as it is.
    pub fn text(self, text: &str) -> Result<()> {
        Ok(io::stdout().lock().write_all(text.as_bytes())?)
    }

    /// Prints a value: as JSON, or as `people` makes it.
    pub fn value<T: Serialize>(self, value: &T, people: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { people(value) };
        self.text(&format!("{}\n", text.trim_end()))
    }
}

/// A table without lines, as `ps` makes them; without titles when there are none.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !header.is_empty() {
        table.set_header(header.iter().map(|title| title.to_uppercase()));
    }
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.trim_fmt()
}

fn problem_for_people(problem: &Problem) -> String {
    // The CPU's reasons are the rows of its table.
    let of_cpu = |reason: &&Reason| problem.cpu.is_some() && reason.code == "cpu_incompatible";
    let reasons = problem.reasons.iter().filter(|reason| !of_cpu(reason));
    let reasons: String = reasons.map(|r| format!("\n  - {}: {}", r.code, r.detail)).collect();
    let detail = if reasons.is_empty() { &problem.detail } else { &problem.title };
    let cpu = problem.cpu.as_ref().map(|cpu| format!("\n\n{}", report::details(cpu))).unwrap_or_default();
    format!("error [{}]: {detail}{reasons}{cpu}", problem.code)
}

/// Prints why it did not work, with the problem's code and every reason.
pub fn print_error(error: &anyhow::Error, json: bool) {
    let api = error.downcast_ref::<ApiClientError>();
    let text = match (json, api) {
        (true, Some(ApiClientError::Problem(problem))) => json!({ "error": problem }).to_string(),
        (true, Some(other)) => {
            json!({ "error": { "code": other.code(), "detail": other.to_string() } }).to_string()
        }
        (true, None) => {
            json!({ "error": { "code": "cli_error", "detail": format!("{error:#}") } }).to_string()
        }
        (false, Some(ApiClientError::Problem(problem))) => problem_for_people(problem),
        (false, Some(other)) => format!("error [{}]: {other}", other.code()),
        (false, None) => format!("error: {error:#}"),
    };
    // Nobody can be told that standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}
