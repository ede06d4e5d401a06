//! Plots of a matrix's runs: the gap over link speeds, total time over dirty rates, how long guests wait for pages, and the
//! course of single migrations.

mod axis;
mod chart;
mod links;
mod rates;
mod timeline;
mod waits;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::matrix::Run;
use chart::Chart;

/// A plot: the name of its file, and its charts from top to bottom.
type Plot = (String, Vec<Chart>);

/// Draws everything that these runs give into a directory, which is made, and says which files those are.
///
/// # Errors
/// A file can't be written.
pub fn draw(runs: &[Run], dir: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let plots = [links::plots(runs), rates::plots(runs), waits::plots(runs), timeline::plots(runs)];
    let drawn = plots.into_iter().flatten().map(|(name, charts)| {
        let file = dir.join(name).with_extension("svg");
        Chart::draw(&charts, &file)?;
        Ok(file)
    });
    drawn.collect()
}

/// A name of a file out of words for people.
fn file_name(words: &[&str]) -> String {
    let mut name = String::new();
    for letter in words.join("-").chars() {
        match letter {
            _ if letter.is_ascii_alphanumeric() || letter == '.' => name.push(letter.to_ascii_lowercase()),
            _ if name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    // An extension is put after the last dot.
    name.trim_matches('-').replace('.', "_")
}

#[cfg(test)]
mod tests;
