//! Where the secrets behind ids come from.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use toml::Table;

use super::StartError;
use crate::{config, id};

/// The name of the file in an embedded installation's folder.
const FILE: &str = "ids.toml";

/// Under which their fingerprints stand in the database.
pub(super) const DEDUP: &str = "id.dedup_key";
pub(super) const TAG: &str = "id.tag_key";

/// The secrets behind ids.
pub type Ids = config::Ids;

/// New ones.
pub fn generate() -> Result<Ids, StartError> {
    let secret =
        || id::Secret::generate().map_err(|source| StartError::SetUp { what: "secrets", source: Box::new(source) });
    Ok(Ids { dedup_key: secret()?, tag_keys: vec![secret()?] })
}

/// As they stand in a configuration file.
pub fn to_toml(ids: &Ids) -> String {
    let tags: Vec<_> = ids.tag_keys.iter().map(|tag| format!("\"{}\"", tag.reveal())).collect();
    format!("[id]\ndedup_key = \"{}\"\ntag_keys = [{}]\n", ids.dedup_key.reveal(), tags.join(", "))
}

/// Those of an embedded installation: made at its first start, and kept beside its database for its owner's eyes only.
pub(super) fn of_folder(folder: &Path) -> Result<Ids, StartError> {
    let path = folder.join(FILE);
    let io = |source| StartError::Secrets { path: path.clone(), source };
    let mut options = OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let ids = generate()?;
            file.write_all(to_toml(&ids).as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
            Ok(ids)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let text = std::fs::read_to_string(&path).map_err(io)?;
            parse(&text).ok_or_else(|| io(std::io::Error::new(ErrorKind::InvalidData, "it does not hold id secrets")))
        }
        Err(error) => Err(io(error)),
    }
}

fn parse(text: &str) -> Option<Ids> {
    let table = text.parse::<Table>().ok()?;
    let section = table.get("id")?.as_table()?;
    let secret = |value: &toml::Value| value.as_str()?.parse().ok();
    let tag_keys: Option<Vec<_>> = section.get("tag_keys")?.as_array()?.iter().map(secret).collect();
    Some(Ids { dedup_key: secret(section.get("dedup_key")?)?, tag_keys: tag_keys.filter(|keys| !keys.is_empty())? })
}
