//! Criterion's results, out of the files that it keeps: in `<benchmark>/new`, `benchmark.json` with the benchmark's name
//! and `estimates.json` with what was estimated of its samples. (Criterion calls the files its own; the lock file
//! holds its version, and a file that doesn't fit is an error, not a benchmark less.)

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::BenchError;

/// Median time of an iteration in nanoseconds, by benchmark.
pub type Medians = BTreeMap<Benchmark, f64>;

/// What was measured. A benchmark that does more than it did at the base has the same name and another amount of work
/// (what criterion calls its throughput): it is then another one, with which the base's can't be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Benchmark {
    #[serde(rename = "full_id")]
    pub name: String,
    /// Unit and number for each iteration; none where the benchmark doesn't say.
    #[serde(rename = "throughput")]
    pub work: Option<BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    /// In nanoseconds.
    point_estimate: f64,
}

/// Reads all results below a folder, which need not be there.
pub fn medians(folder: &Path) -> Result<Medians, BenchError> {
    let mut medians = Medians::new();
    if folder.is_dir() {
        collect(folder, &mut medians)?;
    }
    Ok(medians)
}

fn collect(folder: &Path, medians: &mut Medians) -> Result<(), BenchError> {
    for entry in fs::read_dir(folder).map_err(BenchError::io(folder))? {
        let path = entry.map_err(BenchError::io(folder))?.path();
        if path.ends_with("new") {
            let benchmark = parse(&path.join("benchmark.json"))?;
            let Estimates { median } = parse(&path.join("estimates.json"))?;
            medians.insert(benchmark, median.point_estimate);
        } else if path.is_dir() {
            collect(&path, medians)?;
        }
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, BenchError> {
    let text = fs::read(path).map_err(BenchError::io(path))?;
    serde_json::from_slice(&text).map_err(|source| BenchError::Estimate { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As criterion 0.8.2 wrote them, shortened to two estimates.
    const BENCHMARK: &str = r#"{"group_id":"guest/hash","function_id":"zero","value_str":null,"throughput":{"Bytes":16777216},
        "full_id":"guest/hash/zero","directory_name":"guest_hash/zero","title":"guest/hash/zero"}"#;
    const ESTIMATES: &str = r#"{"mean":{"confidence_interval":{"confidence_level":0.95,"lower_bound":201039.3,"upper_bound":201419.2},
        "point_estimate":201224.3,"standard_error":96.7},"median":{"confidence_interval":{"confidence_level":0.95,
        "lower_bound":200992.5,"upper_bound":201325.6},"point_estimate":201095.45,"standard_error":74.4},"slope":null}"#;

    fn kept(estimates: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (part, median) in [("new", estimates), ("base", "{}")] {
            let part = folder.path().join("guest_hash/zero").join(part);
            fs::create_dir_all(&part).unwrap();
            fs::write(part.join("benchmark.json"), BENCHMARK).unwrap();
            fs::write(part.join("estimates.json"), median).unwrap();
        }
        folder
    }

    #[test]
    fn the_newest_median_is_taken_under_the_benchmarks_own_name() {
        let folder = kept(ESTIMATES);
        let work = Some(BTreeMap::from([("Bytes".to_owned(), 16_777_216)]));
        let benchmark = Benchmark { name: "guest/hash/zero".to_owned(), work };
        assert_eq!(medians(folder.path()).unwrap(), Medians::from([(benchmark, 201_095.45)]));
    }

    #[test]
    fn a_file_that_does_not_fit_is_an_error_that_names_it() {
        let folder = kept(r#"{"mean":{"point_estimate":1.0}}"#);
        let error = medians(folder.path()).unwrap_err();
        assert!(
            matches!(&error, BenchError::Estimate { path, .. } if path.ends_with("new/estimates.json")),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_measured_nothing_leaves_nothing() {
        assert!(medians(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
