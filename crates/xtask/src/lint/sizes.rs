//! A file should be seen at once: none over 800 lines, half under 200, nine in ten under 500.

use std::fmt;

use crate::tree::Source;

/// No file is longer.
const LONGEST: usize = 800;
/// The median stays under this.
const MEDIAN: usize = 200;
/// At least [`SHARE_PERCENT`] of the files stay under this.
const LONG: usize = 500;
const SHARE_PERCENT: usize = 90;

/// How long the files are.
pub struct Sizes {
    /// Lines and path, shortest first.
    files: Vec<(usize, String)>,
}

impl Sizes {
    pub fn of(sources: &[Source]) -> Self {
        let mut files: Vec<_> =
            sources.iter().map(|source| (source.text.lines().count(), source.path.clone())).collect();
        files.sort();
        Self { files }
    }

    fn median(&self) -> usize {
        self.files.get(self.files.len() / 2).map_or(0, |(lines, _)| *lines)
    }

    /// Whole percent of the files that are under [`LONG`] lines, rounded down.
    fn share_percent(&self) -> usize {
        let short = self.files.iter().filter(|(lines, _)| *lines < LONG).count();
        (short * 100).checked_div(self.files.len()).unwrap_or(100)
    }

    pub fn breaches(&self) -> Vec<String> {
        let mut breaches: Vec<_> = self
            .files
            .iter()
            .filter(|(lines, _)| *lines > LONGEST)
            .map(|(lines, path)| format!("{path}: {lines} lines, at most {LONGEST}: split it"))
            .collect();
        if self.median() >= MEDIAN {
            breaches
                .push(format!("the median file has {} lines, it must stay under {MEDIAN}", self.median()));
        }
        if self.share_percent() < SHARE_PERCENT {
            breaches.push(format!(
                "{} % of the files are under {LONG} lines, it must be {SHARE_PERCENT} %",
                self.share_percent()
            ));
        }
        breaches
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sizes: {} files, median {} lines, {} % under {LONG}",
            self.files.len(),
            self.median(),
            self.share_percent()
        )?;
        match self.files.last() {
            Some((lines, path)) => write!(f, ", longest {path} with {lines}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(lines: &[usize]) -> Sizes {
        let sources: Vec<_> = lines
            .iter()
            .enumerate()
            .map(|(index, lines)| Source { path: format!("f{index}.rs"), text: "x\n".repeat(*lines) })
            .collect();
        Sizes::of(&sources)
    }

    #[test]
    fn the_bounds_themselves() {
        assert!(sizes(&[199, 1, 199]).breaches().is_empty());
        assert_eq!(
            sizes(&[200, 1, 200]).breaches(),
            ["the median file has 200 lines, it must stay under 200"]
        );
        assert!(sizes(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 800]).breaches().is_empty());
        let longest = sizes(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 801]).breaches();
        assert_eq!(longest, ["f9.rs: 801 lines, at most 800: split it"]);
    }

    #[test]
    fn nine_in_ten_are_under_500() {
        let share = sizes(&[1, 1, 1, 1, 1, 1, 1, 1, 500, 500]).breaches();
        assert_eq!(share, ["80 % of the files are under 500 lines, it must be 90 %"]);
    }

    #[test]
    fn no_files_are_no_breach() {
        assert!(sizes(&[]).breaches().is_empty());
    }
}
