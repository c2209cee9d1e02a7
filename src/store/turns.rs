//! Of jobs that are put into the store together: which of them had a row when their turn came. Pure.

use std::collections::HashSet;

use uuid::Uuid;

use super::Known;

/// Each id in its order, and whether it had a row before.
pub(super) struct Turns(Vec<(Uuid, bool)>);

impl Turns {
    /// Of these ids, if those were new. A new one is so the first time only.
    pub(super) fn new(ids: impl IntoIterator<Item = Uuid>, new: Vec<Uuid>) -> Self {
        let mut new: HashSet<_> = new.into_iter().collect();
        Self(ids.into_iter().map(|id| (id, !new.remove(&id))).collect())
    }

    /// Those whose rows are to be looked up.
    pub(super) fn known(&self) -> Vec<Uuid> {
        self.0.iter().filter(|(_, known)| *known).map(|(id, _)| *id).collect()
    }

    /// What is answered to each, with the rows of those that have one. `RowNotFound` if one of those has gone since: its job
    /// is neither new nor known, and must come again.
    pub(super) fn answer(&self, rows: &[Known]) -> sqlx::Result<Vec<Option<Known>>> {
        let row = |id| rows.iter().find(|row| row.id == id).cloned().ok_or(sqlx::Error::RowNotFound);
        self.0.iter().map(|(id, known)| known.then(|| row(*id)).transpose()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{State, Tenant};

    #[test]
    fn a_new_job_is_new_once_and_one_whose_row_has_gone_is_neither_new_nor_known() {
        let [new, old] = [1, 2].map(Uuid::from_u128);
        let turns = Turns::new([new, old, new], vec![new]);
        assert_eq!(turns.known(), [old, new]);
        let row = |id| Known { id, tenant: Tenant::DEFAULT, state: State::Scheduled, run: 1, digest: None };
        let rows = [row(new), row(old)];
        assert_eq!(turns.answer(&rows).expect("both are there"), [None, Some(row(old)), Some(row(new))]);
        assert!(matches!(turns.answer(&rows[..1]), Err(sqlx::Error::RowNotFound)));
    }
}
