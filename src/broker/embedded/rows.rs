//! Messages as rows.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{Arc, LazyLock},
};

use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sqlx::{Row as _, SqliteConnection, SqlitePool, sqlite::SqliteRow};
use uuid::Uuid;
use warren_messages::codec;

use crate::{
    broker::Outgoing,
    job::{Envelope, Key, Kind, Suspicion, Tenant, Trace},
    sqlite::{MultiRow, Repeated},
};

/// A message to be written.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) seq: i64,
    pub(super) job: Outgoing,
    /// What of the envelope is not at its default.
    pub(super) head: Option<Vec<u8>>,
}

/// A message on the disk, to be given out.
pub(super) struct Stored {
    pub(super) seq: i64,
    pub(super) given: u32,
    pub(super) envelope: Box<Envelope>,
    pub(super) body: Vec<u8>,
}

/// What of an envelope is not at its default. Hardly any message has anything of it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Head {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspicion: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_state: Option<String>,
}

/// The head of an envelope, encoded, if it has one.
pub(super) fn head(envelope: &Envelope) -> Option<Vec<u8>> {
    let trace = envelope.trace.as_deref();
    let head = Head {
        version: (envelope.version != 1).then_some(envelope.version),
        run: (envelope.run != 1).then_some(envelope.run),
        attempt: (envelope.attempt != 0).then_some(envelope.attempt),
        tenant: (envelope.tenant != Tenant::DEFAULT).then(|| envelope.tenant.to_string()),
        source: envelope.source.as_deref().map(str::to_owned),
        root: envelope.root,
        keyed: envelope.key.is_keyed().then_some(true),
        digest: envelope.key.digest().map(|digest| blake3::Hash::from_bytes(*digest).to_hex().to_string()),
        suspicion: Some(envelope.suspicion.as_number()).filter(|number| *number != 0),
        trace_parent: trace.map(|trace| trace.parent.clone()),
        trace_state: trace.and_then(|trace| trace.state.clone()),
    };
    if head == Head::default() {
        return None;
    }
    // Text and numbers of bounded length: it cannot fail.
    codec::encode(&head).ok()
}

fn envelope(kind: &Kind, id: Uuid, created_at: i64, head: Option<&[u8]>) -> sqlx::Result<Envelope> {
    let plain = Envelope::new(id, kind.clone(), 1, created_at);
    let Some(head) = head else { return Ok(plain) };
    let bad = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    let head = codec::to_json(head).map_err(|error| bad(error.into()))?;
    let head: Head = serde_json::from_value(head).map_err(|error| bad(error.into()))?;
    let digest = head.digest.and_then(|digest| blake3::Hash::from_hex(digest).ok());
    Ok(Envelope {
        version: head.version.unwrap_or(1),
        run: head.run.unwrap_or(1),
        attempt: head.attempt.unwrap_or(0),
        tenant: match head.tenant {
            Some(name) => Tenant::new(&name).map_err(|error| bad(error.into()))?,
            None => Tenant::DEFAULT,
        },
        source: head.source.map(Arc::from),
        root: head.root,
        key: match (head.keyed, digest) {
            (_, Some(digest)) => Key::Digest(*digest.as_bytes()),
            (Some(true), None) => Key::Keyed,
            _ => Key::None,
        },
        suspicion: Suspicion::from_number(head.suspicion.unwrap_or(0).into()),
        trace: head.trace_parent.map(|parent| Box::new(Trace { parent, state: head.trace_state })),
        ..plain
    })
}

// FAIL, not ABORT: whoever writes rolls the whole transaction back, so SQLite need not keep a copy of each page that a statement
// changes to take back that statement alone. With many kinds that is a page for each of them.
static INSERT: LazyLock<MultiRow> = LazyLock::new(|| {
    MultiRow::new(
        "INSERT OR FAIL INTO messages (kind, seq, id, created_at, head, body) VALUES",
        "(?, ?, ?, ?, ?, ?)",
        "",
    )
});

/// Writes messages.
pub(super) async fn insert(connection: &mut SqliteConnection, rows: &[Row]) -> sqlx::Result<()> {
    for (mut query, part) in INSERT.statements(rows) {
        for Row { seq, job: Outgoing { envelope, body }, head } in part {
            query = query
                .bind(envelope.kind.shared())
                .bind(*seq)
                .bind(envelope.id)
                .bind(envelope.created_at)
                .bind(head.as_deref())
                .bind(body.as_slice());
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Which messages are to be read: of a kind, those whose numbers are in a range, at most so many, in order.
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) numbers: RangeInclusive<i64>,
    pub(super) limit: usize,
}

static READ: LazyLock<Repeated> = LazyLock::new(|| {
    Repeated::questions(
        "SELECT ? AS place, seq, given, id, created_at, head, body FROM messages
         WHERE kind = ? AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
    )
});

/// Reads messages. Answers for each that was wanted, in their order, what was found; an error in place of messages that
/// cannot be read.
pub(super) async fn read(readers: &SqlitePool, wanted: &[&Wanted]) -> sqlx::Result<Vec<sqlx::Result<Vec<Stored>>>> {
    let mut found = Vec::with_capacity(wanted.len());
    for part in wanted.chunks(Repeated::MOST) {
        let (mut query, size) = READ.statement(part.len());
        for place in 0..size {
            let (kind, numbers, limit) = match part.get(place) {
                Some(Wanted { kind, numbers, limit }) => (kind.as_str(), numbers.clone(), *limit),
                None => ("", 0..=0, 0),
            };
            query = query
                .bind(i64::try_from(place).unwrap_or(i64::MAX))
                .bind(kind)
                .bind(*numbers.start())
                .bind(*numbers.end())
                .bind(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        let mut its: Vec<Vec<_>> = part.iter().map(|_| Vec::new()).collect();
        let mut rows = query.fetch(readers);
        while let Some(row) = rows.try_next().await? {
            let place: i64 = row.try_get(0)?;
            let place = usize::try_from(place).ok().filter(|place| *place < part.len());
            let place = place.ok_or_else(|| sqlx::Error::Decode(format!("a row of no question: {row:?}").into()))?;
            its[place].push(stored(&part[place].kind, &row));
        }
        // Only now: an error of one must not hide what was found for others.
        found.extend(its.into_iter().map(|its| its.into_iter().collect::<sqlx::Result<_>>()));
    }
    Ok(found)
}

fn stored(kind: &Kind, row: &SqliteRow) -> sqlx::Result<Stored> {
    Ok(Stored {
        seq: row.try_get(1)?,
        given: row.try_get(2)?,
        envelope: envelope(kind, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?)?.into(),
        body: row.try_get(6)?,
    })
}

static DELETE: LazyLock<Repeated> =
    LazyLock::new(|| Repeated::commands("DELETE FROM messages WHERE kind = ? AND seq BETWEEN ? AND ?"));

/// Deletes messages, run by run.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    runs: &[(&Kind, &RangeInclusive<i64>)],
) -> sqlx::Result<()> {
    for part in runs.chunks(Repeated::MOST) {
        let (mut query, _) = DELETE.statement(part.len());
        for (kind, run) in part {
            query = query.bind(kind.as_str()).bind(*run.start()).bind(*run.end());
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Moves the mark of a kind ahead.
pub(super) async fn mark(connection: &mut SqliteConnection, kind: &Kind, upto: i64) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO marks (kind, upto) VALUES (?, ?) ON CONFLICT (kind) DO UPDATE SET upto = excluded.upto")
        .bind(kind.as_str())
        .bind(upto)
        .execute(connection)
        .await
        .map(drop)
}

/// Counts exactly these as given out, and no others.
pub(super) async fn write_down_given(connection: &mut SqliteConnection, out: &[(Kind, Vec<i64>)]) -> sqlx::Result<()> {
    for (kind, seqs) in out {
        for run in runs(seqs, |_, _| false) {
            sqlx::query("UPDATE messages SET given = given + 1 WHERE kind = ? AND seq BETWEEN ? AND ?")
                .bind(kind.as_str())
                .bind(*run.start())
                .bind(*run.end())
                .execute(&mut *connection)
                .await?;
        }
    }
    sqlx::query("DELETE FROM marks").execute(connection).await.map(drop)
}

/// Sorted numbers as runs, without gaps but those between two numbers that may be spanned.
pub(super) fn runs(seqs: &[i64], may_span: impl Fn(i64, i64) -> bool) -> Vec<RangeInclusive<i64>> {
    let mut runs: Vec<RangeInclusive<i64>> = Vec::new();
    for &seq in seqs {
        match runs.last_mut() {
            Some(run) if *run.end() + 1 == seq || may_span(*run.end(), seq) => *run = *run.start()..=seq,
            _ => runs.push(seq..=seq),
        }
    }
    runs
}

/// How often messages were given back within this process.
pub(super) type GivenBack = HashMap<i64, u32>;

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::{
        sqlite::{Database, Use, WriteError},
        store::{Installation as _, sqlite::Sqlite},
    };

    #[test]
    fn an_envelope_survives_its_row_and_a_plain_one_needs_no_head() {
        let kind = Kind::new("a.b").expect("a good name");
        let plain = Envelope::new(Uuid::from_u128(7), kind.clone(), 1, 5);
        assert_eq!(head(&plain), None);
        let full = Envelope {
            version: 3,
            run: 4,
            attempt: 2,
            tenant: Tenant::new("acme").expect("a good name"),
            source: Some("shop".into()),
            root: Some(Uuid::from_u128(9)),
            key: Key::Digest([7; 32]),
            suspicion: Suspicion::Crashed,
            trace: Some(Box::new(Trace { parent: "00-a-b-01".into(), state: Some("x=y".into()) })),
            ..plain
        };
        let bytes = head(&full);
        let back = envelope(&kind, full.id, full.created_at, bytes.as_deref()).expect("what was written");
        assert_eq!(back, full);
    }

    #[tokio::test]
    async fn what_many_kinds_want_is_found_for_each_and_what_cannot_be_read_is_told_to_its_own() {
        // More than one statement asks for, and one that fits no size.
        let kinds = 70;
        let (_folder, database) = messages(0, kinds).await;
        let head = |seq| (seq == 3).then(|| vec![0xc1]);
        write(&database, (0..kinds * 4).map(|seq| Row { head: head(seq), ..row(seq, kinds) }).collect())
            .await
            .expect("messages");
        // Behind the bad one are good ones of its kind, and behind those other kinds.
        let bad = Wanted { kind: kind(3), numbers: 0..=kinds * 4, limit: 9 };
        let good = |number| Wanted { kind: kind(number), numbers: number + 1..=kinds * 4, limit: 2 };
        let wanted: Vec<_> = iter::once(bad).chain((0..kinds).map(good)).collect();
        let wanted: Vec<_> = wanted.iter().collect();
        let found = read(database.readers(), &wanted).await.expect("it answers");
        assert_eq!(found.len(), wanted.len());
        assert!(found[0].is_err(), "0xc1 begins nothing in MessagePack");
        for (number, found) in (0..kinds).zip(&found[1..]) {
            let found = found.as_ref().expect("messages");
            let found: Vec<_> = found.iter().map(|stored| (stored.seq, stored.body.as_slice())).collect();
            let [second, third] = [1, 2].map(|round| number + kinds * round);
            assert_eq!(found, [(second, &second.to_le_bytes()[..]), (third, &third.to_le_bytes()[..])]);
        }
    }

    /// A file with this many messages, number `n` of kind `k<n % kinds>`.
    async fn messages(count: i64, kinds: i64) -> (tempfile::TempDir, Arc<Database>) {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Arc::new(Database::open(folder.path(), Use::Owner).await.expect("a database"));
        Sqlite::new(database.clone()).migrate().await.expect("a schema");
        write(&database, (0..count).map(|seq| row(seq, kinds)).collect()).await.expect("messages");
        (folder, database)
    }

    fn kind(number: i64) -> Kind {
        Kind::new(&format!("kind.k{number}")).expect("a good name")
    }

    fn row(seq: i64, kinds: i64) -> Row {
        let envelope = Envelope::new(Uuid::from_u128(seq.cast_unsigned().into()), kind(seq % kinds), 1, 5);
        Row { seq, job: Outgoing { envelope, body: seq.to_le_bytes().to_vec() }, head: None }
    }

    async fn write(database: &Database, rows: Vec<Row>) -> Result<(), WriteError> {
        let rows = Arc::new(rows);
        let written = database.write(move |connection| {
            let rows = rows.clone();
            Box::pin(async move { insert(connection, &rows).await })
        });
        written.await
    }

    async fn left(database: &Database) -> Vec<i64> {
        let left = sqlx::query_scalar("SELECT seq FROM messages ORDER BY seq").fetch_all(database.readers());
        left.await.expect("numbers")
    }

    #[tokio::test]
    async fn of_messages_of_which_one_cannot_be_written_none_is_and_those_beside_them_are() {
        let (_folder, database) = messages(3, 1).await;
        // Two statements, and it is the second that meets a number that is there.
        let bad = [3, 4, 5, 6, 7, 1].map(|seq| row(seq, 1));
        let (before, bad, after) = tokio::join!(
            write(&database, vec![row(8, 1)]),
            write(&database, bad.into()),
            write(&database, vec![row(9, 1)]),
        );
        bad.expect_err("there is one with that number");
        before.and(after).expect("messages");
        assert_eq!(left(&database).await, [0, 1, 2, 8, 9]);
    }

    #[tokio::test]
    async fn many_runs_of_many_kinds_are_deleted_and_nothing_beside_them() {
        let kinds = 70;
        let (_folder, database) = messages(kinds * 3, kinds).await;
        // More than one statement holds, and a number that fits no size. The third of each kind stays, and all of the last kind.
        let runs: Vec<_> = (0..kinds - 1).map(|number| (kind(number), number..=number + kinds)).collect();
        let deleted = database.write(move |connection| {
            let runs = runs.clone();
            Box::pin(async move {
                delete(connection, &runs.iter().map(|(kind, run)| (kind, run)).collect::<Vec<_>>()).await
            })
        });
        deleted.await.expect("they are deleted");
        let stays = (0..kinds * 3).filter(|seq| *seq >= kinds * 2 || seq % kinds == kinds - 1);
        assert_eq!(left(&database).await, stays.collect::<Vec<_>>());
    }

    #[test]
    fn runs_are_as_long_as_there_is_no_gap() {
        assert_eq!(runs(&[1, 2, 3, 7, 9, 10], |_, _| false), [1..=3, 7..=7, 9..=10]);
        assert_eq!(runs(&[1, 3, 7, 10], |after, _| after != 3), [1..=3, 7..=10]);
        assert_eq!(runs(&[], |_, _| true), []);
    }
}
