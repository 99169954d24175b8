//! The configuration's files: the base, `conf.d/*.toml` beside it on top, in the order of their names. Tables merge
//! key by key; everything else, lists of tables too (`[[lane]]`, `[[upstream.endpoint]]`), replaces what was there.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::read::{self, Endpoints, Meaning};
use super::tree::{self, Place, Table};
use super::{Config, Endpoint, Local, Upstream, file};

pub use super::read::Places;

/// Where the configuration is unless said otherwise.
pub const DEFAULT_PATH: &str = "/etc/backhaul/backhaul.toml";

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A configuration that can work.
#[derive(Debug)]
pub struct Loaded {
    /// What is effective: at least one lane, exactly one default lane, at least one endpoint.
    pub config: Config,
    /// Who this gateway is, resolved.
    pub device: String,
    /// What `endpoints_file` says, if there is one and it is good.
    pub endpoints: Option<Vec<Endpoint>>,
    /// What a person should look at; none of it keeps the agent from running.
    pub warnings: Vec<String>,
    /// What was read, in order.
    pub files: Vec<PathBuf>,
}

/// One thing that is wrong: `file:line: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1; `None`: the file as a whole.
    pub line: Option<usize>,
    /// What is wrong, in one line.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.message),
            None => write!(f, "{}: {}", self.file.display(), self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads, merges and checks the configuration at `path`, all it refers to included. Every error is told.
pub fn load(path: &Path) -> Result<Loaded, Vec<ConfigError>> {
    meaning(read_files(path, None)?)
}

/// The same as it would be with the file `candidate` in the place of `overlay`, one of `conf.d`.
pub fn load_as_if(path: &Path, overlay: &Path, candidate: &Path) -> Result<Loaded, Vec<ConfigError>> {
    meaning(read_files(path, Some((overlay, Some(candidate))))?)
}

/// What the files say, unchecked, with `overlay` left out.
pub fn without(path: &Path, overlay: &Path) -> Result<Table, Vec<ConfigError>> {
    read_files(path, Some((overlay, None))).map(|(_, tree)| tree)
}

/// One file alone, unchecked.
pub fn one(path: &Path) -> Result<Table, ConfigError> {
    parse_file(path, 0)
}

fn meaning((files, tree): (Vec<PathBuf>, Table)) -> Result<Loaded, Vec<ConfigError>> {
    let Meaning { config, device, mut warnings } = read::read(&tree).map_err(|problems| placed(&files, problems))?;
    let endpoints_file = config.upstream.endpoints_file.as_deref().map(endpoints);
    let endpoints = match endpoints_file {
        None => None,
        Some(Ok((endpoints, more))) => {
            warnings.extend(more);
            Some(endpoints)
        }
        Some(Err(errors)) => {
            let stay = |error| format!("{error}: the endpoints of the configuration are used");
            warnings.extend(errors.into_iter().map(stay));
            None
        }
    };
    Ok(Loaded { config, device, endpoints, warnings, files })
}

/// What an `endpoints_file` says, and what a person should look at.
pub fn endpoints(path: &Path) -> Result<Endpoints, Vec<ConfigError>> {
    let tree = parse_file(path, 0).map_err(|error| vec![error])?;
    read::read_endpoints_file(&tree).map_err(|problems| placed(&[path.to_owned()], problems))
}

/// The local socket's path alone, for programs that talk to the agent: other errors are the agent's business.
pub fn socket(path: &Path) -> Result<PathBuf, Vec<ConfigError>> {
    let (files, tree) = read_files(path, None)?;
    read::read_socket(&tree).map_err(|problems| placed(&files, problems))
}

/// How a link comes back and stays up, for the planner of a fleet: of a whole configuration or of a fragment.
pub fn link(path: &Path) -> Result<Upstream, Vec<ConfigError>> {
    let (files, tree) = read_files(path, None)?;
    read::read_link(&tree).map_err(|problems| placed(&files, problems))
}

/// Where the outbox and the local socket are, and the files that hold secrets. Nothing else is checked.
pub fn places(path: &Path) -> Result<Places, Vec<ConfigError>> {
    let (files, tree) = read_files(path, None)?;
    read::read_places(&tree).map_err(|problems| placed(&files, problems))
}

/// The same of these files, the configuration first.
pub fn places_of(files: Vec<PathBuf>) -> Result<Places, Vec<ConfigError>> {
    let (files, tree) = merge(files, None)?;
    read::read_places(&tree).map_err(|problems| placed(&files, problems))
}

/// The local socket's path where no configuration can be read.
pub fn socket_default() -> PathBuf {
    Local::default().socket
}

fn placed(files: &[PathBuf], problems: Vec<(Place, String)>) -> Vec<ConfigError> {
    let error = |(place, message): (Place, String)| ConfigError {
        file: files[place.file].clone(),
        line: Some(place.line),
        message,
    };
    problems.into_iter().map(error).collect()
}

/// `instead`: what is read in the place of a file of `conf.d`, whether that is there or not; `None`: nothing.
fn read_files(path: &Path, instead: Option<(&Path, Option<&Path>)>) -> Result<(Vec<PathBuf>, Table), Vec<ConfigError>> {
    let mut found = overlays(&path.with_file_name("conf.d")).map_err(|error| vec![error])?;
    if let Some((overlay, candidate)) = instead {
        found.retain(|file| file != overlay);
        found.extend(candidate.map(|_| overlay.to_owned()));
        found.sort_unstable();
    }
    let mut files = vec![path.to_owned()];
    files.extend(found);
    merge(files, instead)
}

/// What they say, the later ones over the earlier ones.
fn merge(
    files: Vec<PathBuf>,
    instead: Option<(&Path, Option<&Path>)>,
) -> Result<(Vec<PathBuf>, Table), Vec<ConfigError>> {
    let mut merged = Table::new();
    let mut errors = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let candidate = instead.filter(|(overlay, _)| file == overlay).and_then(|(_, candidate)| candidate);
        let parsed = parse_file(candidate.unwrap_or(file), index).map_err(|error| ConfigError {
            // The candidate's own name is nobody's business.
            file: file.clone(),
            ..error
        });
        match parsed {
            Ok(table) => tree::overlay(&mut merged, table),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok((files, merged)) } else { Err(errors) }
}

/// `*.toml` in `conf.d`, by name.
pub fn overlays(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let tell = |error: io::Error| ConfigError { file: folder.to_owned(), line: None, message: error.to_string() };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(tell(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.map_err(tell)?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        let file = folder.join(name);
        if !hidden && file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn parse_file(path: &Path, index: usize) -> Result<Table, ConfigError> {
    let error = |line, message| ConfigError { file: path.to_owned(), line, message };
    let bytes = file::read(path, FILE_BYTES_MAX + 1).map_err(|fault| error(None, fault.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(error(None, format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|fault| {
        let before = bytes.iter().take(fault.valid_up_to());
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        error(Some(line), "not UTF-8".into())
    })?;
    tree::parse(text, index).map_err(|(line, message)| error(Some(line), message))
}
