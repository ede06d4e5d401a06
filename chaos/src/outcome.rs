use migrated_api::{MigrationRecord, MigrationState};
use migrated_bench::report::table;
use serde::Serialize;

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It completed and never missed the link.
    Completed,
    /// It lost the link, took it up again by itself and completed.
    Recovered,
    /// It failed, and the guest runs on at its source as before.
    FailedAndKept,
    /// The guest is gone, found errors, ran twice, or the move never ended.
    Lost,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Completed, Self::Recovered, Self::FailedAndKept, Self::Lost];

    /// Of a move that ended in this way.
    pub fn of(record: &MigrationRecord, arrival: Option<&MigrationRecord>, problems: &[String]) -> Self {
        if !problems.is_empty() {
            return Self::Lost;
        }
        let recovered = |record: &MigrationRecord| {
            let followed = record.postcopy.as_ref().map_or(0, |followed| followed.recoveries.len());
            record.reconnects.len() + followed > 0
        };
        match record.state {
            Some(MigrationState::Completed) if recovered(record) || arrival.is_some_and(recovered) => {
                Self::Recovered
            }
            Some(MigrationState::Completed) => Self::Completed,
            _ => Self::FailedAndKept,
        }
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Recovered => "recovered",
            Self::FailedAndKept => "failed and kept",
            Self::Lost => "LOST",
        }
    }
}

/// A table of how many moves ended how, by what `row` calls them.
pub fn tally<'a>(title: &str, moves: impl Iterator<Item = (&'a str, Outcome)>) -> String {
    let mut rows: Vec<(&str, [usize; Outcome::ALL.len()])> = Vec::new();
    for (name, outcome) in moves {
        let index = rows.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            rows.push((name, Default::default()));
            rows.len() - 1
        });
        rows[index].1[outcome as usize] += 1;
    }
    let all: Vec<_> =
        (0..Outcome::ALL.len()).map(|n| rows.iter().map(|(_, counts)| counts[n]).sum()).collect();
    let text = |name: &str, counts: &[usize]| {
        let numbers = counts.iter().map(ToString::to_string);
        [name.to_owned(), counts.iter().sum::<usize>().to_string()].into_iter().chain(numbers).collect()
    };
    let header: Vec<_> = [title, "moves"].into_iter().chain(Outcome::ALL.map(Outcome::name)).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|(name, counts)| text(name, counts)).chain([text("all", &all)]).collect();
    table(&header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrated_api::{Postcopy, Recovery};

    fn ended(state: MigrationState) -> MigrationRecord {
        MigrationRecord { state: Some(state), ..MigrationRecord::default() }
    }

    #[test]
    fn a_move_is_what_became_of_it() {
        let completed = ended(MigrationState::Completed);
        let reconnected = MigrationRecord { reconnects: vec![Recovery::default()], ..completed.clone() };
        assert_eq!(Outcome::of(&reconnected, Some(&completed), &[]), Outcome::Recovered);
        let followed = Postcopy { recoveries: vec![Recovery::default()], ..Postcopy::default() };
        let recovered = MigrationRecord { postcopy: Some(followed), ..completed.clone() };
        assert_eq!(Outcome::of(&completed, Some(&completed), &[]), Outcome::Completed);
        assert_eq!(Outcome::of(&completed, Some(&recovered), &[]), Outcome::Recovered);
        assert_eq!(Outcome::of(&ended(MigrationState::Failed), None, &[]), Outcome::FailedAndKept);
        assert_eq!(Outcome::of(&completed, None, &["it ran twice".into()]), Outcome::Lost);
    }

    #[test]
    fn the_rows_add_up() {
        let moves = [("a", Outcome::Completed), ("b", Outcome::Lost), ("a", Outcome::Recovered)];
        let text = tally("state", moves.into_iter());
        assert!(
            text.contains("| a     | 2     | 1         | 1         | 0               | 0    |"),
            "{text}"
        );
        assert!(
            text.contains("| all   | 3     | 1         | 1         | 0               | 1    |"),
            "{text}"
        );
    }
}
