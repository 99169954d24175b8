//! `backhaul provision`: who this gateway is, where it sends to and by what credentials, set once. All of it lies in
//! `conf.d`: the secrets in files of a name that was never there, and one `.toml` that names them. Its rename is the
//! instant at which a board is provisioned; before it nothing is, whatever a power cut left, and what it left goes at
//! the next try.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;

use super::args::{From, ProvisionArgs, Source};
use super::config_errors;
use crate::config::group::user_ids;
use crate::config::load::{self, ConfigError};
use crate::config::overlay::{KINDS, Kind, Overlay, endpoints, string};
use crate::config::tree::{Node, Table, Value};
use crate::config::{file, secret};
use crate::exit;
use crate::shell::entropy;

/// Where a boot partition has it: as Debian mounts it, and as Raspberry Pi OS does.
const BOOT_FOLDERS: [&str; 2] = ["/boot/backhaul", "/boot/firmware/backhaul"];
/// The keys, on a boot partition.
const FRAGMENT: &str = "backhaul.toml";
/// Behind what an image brings (10-…), before what a person adds by hand (99-…).
const OVERLAY: &str = "90-provision.toml";
/// Hidden, so that no start reads it.
const CANDIDATE: &str = ".90-provision.toml.new";
/// The secrets: this, a generation, a dash and the kind's name.
const PREFIX: &str = "90-provision-";
/// Who runs the agent, unless said otherwise.
const USER: &str = "backhaul";
/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
const FIRST_LINE: &str = "# Written by `backhaul provision`; `backhaul provision --force` writes it anew.";

/// True for a file of `conf.d` that this command writes.
pub fn is_ours(name: &str) -> bool {
    let is_generation = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let secret = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
    let is_secret = secret
        .is_some_and(|(generation, kind)| is_generation(generation) && KINDS.iter().any(|known| known.name == kind));
    [OVERLAY, CANDIDATE].contains(&name) || is_secret
}

/// Runs the command.
pub fn run(args: &ProvisionArgs) -> ExitCode {
    match provision(args, &Hands::default()) {
        Ok(Done::Nothing) => ExitCode::SUCCESS,
        Ok(Done::Already) => {
            eprintln!("provisioned already, and so");
            ExitCode::SUCCESS
        }
        Ok(Done::Written(overlay)) => {
            eprintln!("provisioned: {}; a running agent takes it up at SIGHUP", overlay.display());
            ExitCode::SUCCESS
        }
        Err(Fault::Config(errors)) => config_errors(&errors),
        Err(Fault::Other(code, message)) => {
            eprintln!("backhaul: {message}");
            ExitCode::from(code)
        }
    }
}

/// What was done.
#[derive(Debug, PartialEq)]
enum Done {
    /// There is nothing to provision from.
    Nothing,
    /// It says all that already.
    Already,
    /// To this file.
    Written(PathBuf),
}

/// Why nothing was.
#[derive(Debug)]
enum Fault {
    /// The configuration would not work.
    Config(Vec<ConfigError>),
    /// Exit code and message.
    Other(u8, String),
}

impl Fault {
    fn io(path: &Path, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound {
            exit::NO_INPUT
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            exit::PERMISSION
        } else {
            exit::IO
        };
        Self::Other(code, format!("{}: {error}", path.display()))
    }
}

/// What is to be provisioned.
#[derive(Debug, Default)]
struct Inputs {
    fragment: Option<(Table, u32)>,
    device: Option<String>,
    url: Option<String>,
    files: Vec<(Kind, Vec<u8>)>,
    /// Those of them that came from the folder, by name.
    found: Vec<&'static str>,
}

fn provision(args: &ProvisionArgs, hands: &Hands) -> Result<Done, Fault> {
    let from = match &args.from {
        From::Nothing => None,
        From::Folder(folder) => Some(folder.clone()),
        From::Boot => match BOOT_FOLDERS.iter().map(Path::new).find(|folder| has_any(folder)) {
            Some(folder) => Some(folder.to_owned()),
            None => return Ok(Done::Nothing),
        },
    };
    let inputs = gather(args, from.as_deref())?;
    let config = std::path::absolute(&args.config).map_err(|error| Fault::io(&args.config, &error))?;
    let target = Target { folder: config.with_file_name("conf.d"), config, owner: owner(args.user.as_deref())? };
    let _one_at_a_time = lock(&target.config)?;
    let done = if !args.force && exists(&target.overlay())? {
        if !target.says(&inputs) {
            let overlay = target.overlay();
            let message = format!("{}: provisioned already, otherwise; --force replaces it", overlay.display());
            return Err(Fault::Other(exit::CANNOT_CREATE, message));
        }
        // Whoever wrote it may have been cut before it stood on flash.
        let synced = hands.make_dir(&target.folder).and_then(|()| hands.sync_dir(&target.folder));
        synced.map_err(|error| Fault::io(&target.folder, &error))?;
        Done::Already
    } else {
        target.write(&inputs, hands)?;
        Done::Written(target.overlay())
    };
    target.tidy(hands);
    if let Some(folder) = from {
        take_away(&folder, &inputs, &target, hands);
    }
    Ok(done)
}

/// Keeps a second run out, until the file is closed.
fn lock(config: &Path) -> Result<File, Fault> {
    let folder = config.parent().unwrap_or(config);
    let locked = File::open(folder).and_then(|file| {
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    });
    locked.map_err(|error| Fault::io(folder, &error))
}

/// What cannot be looked at is not taken for missing.
fn exists(path: &Path) -> Result<bool, Fault> {
    path.try_exists().map_err(|error| Fault::io(path, &error))
}

fn has_any(folder: &Path) -> bool {
    let names = KINDS.iter().map(|kind| kind.name).chain([FRAGMENT]);
    names.into_iter().any(|name| folder.join(name).is_file())
}

fn gather(args: &ProvisionArgs, from: Option<&Path>) -> Result<Inputs, Fault> {
    let mut inputs = Inputs { device: args.device_id.clone(), url: args.url.clone(), ..Inputs::default() };
    if let Some(folder) = from {
        if !has_any(folder) {
            let names = KINDS.map(|kind| kind.name).join(", ");
            let message = format!("{}: has none of {FRAGMENT}, {names}", folder.display());
            return Err(Fault::Other(exit::NO_INPUT, message));
        }
        let path = folder.join(FRAGMENT);
        if exists(&path)? {
            let table = load::one(&path).map_err(|error| Fault::Config(vec![error]))?;
            let bytes = file::read(&path, FILE_BYTES_MAX).map_err(|error| Fault::io(&path, &error))?;
            inputs.fragment = Some((table, crc32c::crc32c(&bytes)));
        }
    }
    let [ca, cert, key] = &args.files;
    for kind in KINDS {
        let typed = match kind.name {
            "ca.pem" => ca.clone(),
            "cert.pem" => cert.clone(),
            "key.pem" => key.clone(),
            _ => match &args.token {
                Some(Source::Stdin) => {
                    let mut bytes = Vec::new();
                    let read = io::stdin().lock().take(FILE_BYTES_MAX).read_to_end(&mut bytes);
                    read.map_err(|error| Fault::io("standard input".as_ref(), &error))?;
                    inputs.files.push((kind, bytes));
                    continue;
                }
                Some(Source::File(file)) => Some(file.clone()),
                None => None,
            },
        };
        let path = match (typed, from.map(|folder| folder.join(kind.name))) {
            (Some(path), _) => Some(path),
            (None, Some(path)) if exists(&path)? => {
                inputs.found.push(kind.name);
                Some(path)
            }
            (None, _) => None,
        };
        if let Some(path) = path {
            let bytes = file::read(&path, FILE_BYTES_MAX).map_err(|error| Fault::io(&path, &error))?;
            inputs.files.push((kind, bytes));
        }
    }
    if let Some((_, bytes)) = inputs.files.iter().find(|(kind, _)| kind.name == "token")
        && let Err(fault) = secret::token(bytes)
    {
        return Err(Fault::Other(exit::DATA, format!("the token {fault}")));
    }
    Ok(inputs)
}

/// Who is to own the secrets; `None`: whoever runs this.
fn owner(user: Option<&str>) -> Result<Option<(u32, u32)>, Fault> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    match (user_ids(user.unwrap_or(USER)), user) {
        (Some(ids), _) => Ok(Some(ids)),
        (None, Some(user)) => Err(Fault::Other(exit::NO_INPUT, format!("no user '{user}' in /etc/passwd"))),
        (None, None) => {
            eprintln!("warning: no user '{USER}' in /etc/passwd: root alone can read the secrets");
            Ok(None)
        }
    }
}

/// Where it goes.
struct Target {
    config: PathBuf,
    /// `conf.d`.
    folder: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Target {
    fn overlay(&self) -> PathBuf {
        self.folder.join(OVERLAY)
    }

    fn file(&self, generation: &str, kind: Kind) -> PathBuf {
        self.folder.join(format!("{PREFIX}{generation}-{}", kind.name))
    }

    /// The generation, and the fragment's checksum, of what is provisioned.
    fn written(&self) -> Option<(String, Option<u32>)> {
        let text = fs::read_to_string(self.overlay()).ok()?;
        let line = text.lines().nth(1)?.strip_prefix("# generation=")?;
        let (generation, from) = line.split_once(" from=").map_or((line, None), |(line, from)| (line, Some(from)));
        Some((generation.to_owned(), from.and_then(|from| u32::from_str_radix(from, 16).ok())))
    }

    /// All of `inputs` is provisioned already. What a boot partition no longer has was taken before.
    fn says(&self, inputs: &Inputs) -> bool {
        let (Some((generation, from)), Ok(tree)) = (self.written(), load::one(&self.overlay())) else { return false };
        let device = match tree.get("device") {
            Some(Node { value: Value::Table(device), .. }) => string(device, "id"),
            Some(_) | None => None,
        };
        let endpoints = endpoints(&tree);
        let url = endpoints.first().and_then(|endpoint| string(endpoint, "url"));
        inputs.fragment.as_ref().is_none_or(|(_, crc)| from == Some(*crc))
            && inputs.device.as_deref().is_none_or(|id| device == Some(id))
            && inputs.url.as_deref().is_none_or(|wanted| url == Some(wanted))
            && inputs.files.iter().all(|(kind, bytes)| self.holds(&generation, *kind, bytes))
    }

    /// To the byte.
    fn holds(&self, generation: &str, kind: Kind, bytes: &[u8]) -> bool {
        file::read(&self.file(generation, kind), FILE_BYTES_MAX).is_ok_and(|held| held == bytes)
    }

    /// Secrets, then the file that names them, checked as a whole, then its rename.
    fn write(&self, inputs: &Inputs, hands: &Hands) -> Result<(), Fault> {
        let base = load::without(&self.config, &self.overlay()).map_err(Fault::Config)?;
        let generation = format!("{:08x}", entropy::draw() as u32);
        let paths: Vec<_> = inputs.files.iter().map(|(kind, _)| (*kind, self.file(&generation, *kind))).collect();
        let overlay = Overlay {
            fragment: inputs.fragment.as_ref().map(|(table, _)| table),
            device: inputs.device.as_deref(),
            url: inputs.url.as_deref(),
            files: paths.iter().map(|(kind, path)| (*kind, path.as_path())).collect(),
        };
        let Some(text) = overlay.text(&base) else {
            return Err(Fault::Other(exit::CONFIG, "credentials for which endpoint? --url says it".into()));
        };
        let from = inputs.fragment.as_ref().map_or_else(String::new, |(_, crc)| format!(" from={crc:08x}"));
        let text = format!("{FIRST_LINE}\n# generation={generation}{from}\n{text}");
        let candidate = self.folder.join(CANDIDATE);
        let written = self.write_files(inputs, &paths, &candidate, &text, hands);
        let checked = written.and_then(|()| {
            load::load_as_if(&self.config, &self.overlay(), &candidate).map_err(Fault::Config)?;
            let commit = hands.rename(&candidate, &self.overlay()).and_then(|()| hands.sync_dir(&self.folder));
            commit.map_err(|error| Fault::io(&self.overlay(), &error))
        });
        checked.inspect_err(|_| self.tidy(hands)).map(drop)
    }

    fn write_files(
        &self,
        inputs: &Inputs,
        paths: &[(Kind, PathBuf)],
        candidate: &Path,
        text: &str,
        hands: &Hands,
    ) -> Result<(), Fault> {
        hands.make_dir(&self.folder).map_err(|error| Fault::io(&self.folder, &error))?;
        for ((kind, bytes), (_, path)) in inputs.files.iter().zip(paths) {
            let mode = if kind.secret { 0o600 } else { 0o644 };
            hands.write(path, bytes, mode, self.owner).map_err(|error| Fault::io(path, &error))?;
        }
        let written = hands.write(candidate, text.as_bytes(), 0o644, None);
        // Before the rename: a name without its file must not be what a power cut leaves.
        let durable = written.and_then(|()| hands.sync_dir(&self.folder));
        durable.map_err(|error| Fault::io(candidate, &error))
    }

    /// Removes what earlier generations and tries left.
    fn tidy(&self, hands: &Hands) {
        let generation = self.written().map(|(generation, _)| format!("{PREFIX}{generation}-"));
        let mut removed = false;
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_current = name == OVERLAY || generation.as_ref().is_some_and(|current| name.starts_with(current));
            if is_ours(&name) && !is_current {
                removed |= hands.remove(&entry.path()).is_ok();
            }
        }
        if removed {
            let _of_use_only = hands.sync_dir(&self.folder);
        }
    }
}

/// Removes the secrets from a boot partition, which anyone can read who has the card: those that are held now.
fn take_away(folder: &Path, inputs: &Inputs, target: &Target, hands: &Hands) {
    let Some((generation, _)) = target.written() else { return };
    for kind in KINDS.iter().filter(|kind| kind.secret) {
        let path = folder.join(kind.name);
        let read = inputs.files.iter().find(|(read, _)| read.name == kind.name && inputs.found.contains(&kind.name));
        let removed = match read {
            Some((_, bytes)) if target.holds(&generation, *kind, bytes) => hands.remove(&path),
            Some(_) | None if path.exists() => Err(io::Error::other("not what is provisioned")),
            Some(_) | None => Ok(()),
        };
        if let Err(error) = removed {
            eprintln!("warning: {}: a secret that stays there: {error}", path.display());
        }
    }
    let _of_use_only = hands.sync_dir(folder);
}

/// All that changes anything: durable when it returns, but for a rename or a removal, which the folder's sync makes so.
#[derive(Default)]
struct Hands {
    /// Calls until the power goes, in a test.
    left: Cell<Option<u32>>,
    /// What was called on what, for a test.
    called: RefCell<Vec<(&'static str, PathBuf)>>,
}

impl Hands {
    fn call(&self, what: &'static str, path: &Path) -> io::Result<()> {
        self.called.borrow_mut().push((what, path.to_owned()));
        match self.left.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                self.left.set(Some(left - 1));
                Ok(())
            }
        }
    }

    /// There, and durably so, also where an earlier run made it.
    fn make_dir(&self, folder: &Path) -> io::Result<()> {
        if !folder.is_dir() {
            self.call("make", folder)?;
            fs::DirBuilder::new().mode(0o755).create(folder)?;
            // Whatever the umask is: the agent has to read it.
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        // On a read-only root it is a link.
        fs::canonicalize(folder)?.parent().map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    fn write(&self, path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
        self.call("create", path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        if let Some((user, group)) = owner {
            fchown(&file, Some(user), Some(group))?;
        }
        self.call("write", path)?;
        file.write_all(bytes)?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        self.call("sync", path)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename", from)?;
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call("remove", path)?;
        fs::remove_file(path)
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.call("sync", folder)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    fn args(dir: &Path) -> ProvisionArgs {
        ProvisionArgs {
            config: dir.join("backhaul.toml"),
            device_id: None,
            url: None,
            token: None,
            files: [None, None, None],
            from: From::Folder(dir.join("boot")),
            force: false,
            user: Some("root".into()),
        }
    }

    /// A board that was provisioned as `old` before, if it was, and a boot partition that says `new`.
    fn board(old: bool) -> TempDir {
        let dir = TempDir::new("provision");
        fs::write(dir.join("backhaul.toml"), "[[upstream.endpoint]]\nurl = 'wss://base/v1'\n").unwrap();
        if old {
            fill(&dir, "old");
            provision(&args(&dir), &Hands::default()).unwrap();
        }
        fill(&dir, "new");
        dir
    }

    fn fill(dir: &Path, say: &str) {
        let boot = dir.join("boot");
        fs::create_dir_all(&boot).unwrap();
        let fragment = format!("[device]\nid = '{say}'\n[[upstream.endpoint]]\nurl = 'wss://{say}/v1'\n");
        fs::write(boot.join(FRAGMENT), fragment).unwrap();
        for kind in KINDS {
            fs::write(boot.join(kind.name), format!("{}-of-{say}\n", kind.name)).unwrap();
        }
    }

    /// Whose board this is: all of it, or none.
    fn whose(dir: &Path) -> String {
        let loaded = load::load(&dir.join("backhaul.toml")).unwrap();
        let endpoint = &loaded.config.upstream.endpoints[0];
        let who = endpoint.url.trim_start_matches("wss://").trim_end_matches("/v1").to_owned();
        if who == "base" {
            assert_eq!(endpoint.token_file, None);
            return who;
        }
        assert_eq!(loaded.device, who);
        let held = |path: &Option<PathBuf>| fs::read_to_string(path.as_ref().unwrap()).unwrap();
        assert_eq!(held(&endpoint.token_file), format!("token-of-{who}\n"));
        assert_eq!(held(&endpoint.ca_file), format!("ca.pem-of-{who}\n"));
        assert_eq!(held(&endpoint.cert_file), format!("cert.pem-of-{who}\n"));
        assert_eq!(held(&endpoint.key_file), format!("key.pem-of-{who}\n"));
        who
    }

    fn ours(dir: &Path) -> usize {
        let entries = fs::read_dir(dir.join("conf.d")).unwrap();
        entries.filter(|entry| is_ours(&entry.as_ref().unwrap().file_name().to_string_lossy())).count()
    }

    #[test]
    fn a_power_cut_at_any_call_leaves_it_provisioned_or_not_and_the_next_try_completes_it() {
        for old in [false, true] {
            let mut seen = Vec::new();
            for calls in 0.. {
                let dir = board(old);
                let hands = Hands { left: Cell::new(Some(calls)), ..Hands::default() };
                let ended = provision(&ProvisionArgs { force: true, ..args(&dir) }, &hands);
                let who = whose(&dir);
                seen.push(who.clone());
                let secrets = dir.join("boot/token").exists() || dir.join("boot/key.pem").exists();
                assert!(who == "new" || dir.join("boot/token").exists(), "{calls}: on one of the two it is always");
                // As the next boot does it.
                let again = ProvisionArgs { force: old && who == "old", ..args(&dir) };
                provision(&again, &Hands::default()).unwrap();
                assert_eq!(whose(&dir), "new");
                assert!(!dir.join("boot/token").exists() && !dir.join("boot/key.pem").exists());
                assert_eq!(ours(&dir), 1 + KINDS.len(), "{calls}: nothing of any other try is left");
                if ended.is_ok() && !secrets && hands.left.get() > Some(0) {
                    break;
                }
            }
            assert!(seen.len() > 15, "a call each: {seen:?}");
            let first = if old { "old" } else { "base" };
            assert!(seen[0] == first && seen.is_sorted_by_key(|who| who == "new"), "{seen:?}");
        }
    }

    #[test]
    fn what_would_not_work_changes_nothing() {
        let dir = board(true);
        fs::write(dir.join("boot").join(FRAGMENT), "[device]\nid = 'no good'\n[upsteam]\n").unwrap();
        let before = fs::read_to_string(dir.join("conf.d").join(OVERLAY)).unwrap();
        let Err(Fault::Config(errors)) = provision(&ProvisionArgs { force: true, ..args(&dir) }, &Hands::default())
        else {
            panic!("a bad name and an unknown section")
        };
        let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|line| line.contains(OVERLAY) && line.contains("upsteam")), "{said:?}");
        assert_eq!(fs::read_to_string(dir.join("conf.d").join(OVERLAY)).unwrap(), before);
        assert_eq!((whose(&dir).as_str(), ours(&dir)), ("old", 1 + KINDS.len()));
        assert!(dir.join("boot/token").exists(), "not lost with it");
    }

    #[test]
    fn once_is_once() {
        let dir = board(true);
        let Err(Fault::Other(code, message)) = provision(&args(&dir), &Hands::default()) else {
            panic!("another board")
        };
        assert_eq!(code, exit::CANNOT_CREATE, "{message}");
        assert_eq!(whose(&dir), "old");
        fill(&dir, "old");
        assert_eq!(provision(&args(&dir), &Hands::default()).unwrap(), Done::Already);
        assert!(!dir.join("boot/token").exists());
        assert_eq!(provision(&args(&dir), &Hands::default()).unwrap(), Done::Already, "without what was taken");
    }

    #[test]
    fn no_secret_leaves_the_boot_partition_before_all_of_it_stands_on_flash() {
        let dir = board(false);
        let (boot, conf) = (dir.join("boot"), dir.join("conf.d"));
        let calls = |say: &str| {
            fill(&dir, say);
            let hands = Hands::default();
            provision(&args(&dir), &hands).unwrap();
            hands.called.take()
        };
        let last = |calls: &[(&str, PathBuf)], what: &str, is: &dyn Fn(&Path) -> bool| {
            calls.iter().rposition(|(called, path)| *called == what && is(path)).unwrap()
        };
        let first_taken = |calls: &[(&str, PathBuf)]| {
            calls.iter().position(|(called, path)| *called == "remove" && path.starts_with(&boot)).unwrap()
        };
        let calls_of_the_first = calls("new");
        let is_file = |path: &Path| path.starts_with(&conf) && path != conf;
        for (index, (_, path)) in calls_of_the_first.iter().enumerate().filter(|(_, (called, _))| *called == "write") {
            let synced = last(&calls_of_the_first, "sync", &|synced| synced == path);
            assert!(index < synced && synced < last(&calls_of_the_first, "rename", &is_file), "{path:?}");
        }
        let renamed = last(&calls_of_the_first, "rename", &is_file);
        let syncs = |from: usize, to: usize| {
            calls_of_the_first[from..to].iter().filter(|(called, path)| *called == "sync" && *path == conf).count()
        };
        let written = last(&calls_of_the_first, "write", &is_file);
        assert_eq!((syncs(written, renamed), syncs(renamed, first_taken(&calls_of_the_first))), (1, 1));
        let already = calls("new");
        assert_eq!(already.iter().filter(|(called, _)| *called == "write").count(), 0);
        let synced = already.iter().position(|(called, path)| *called == "sync" && *path == conf).unwrap();
        assert!(synced < first_taken(&already), "whoever wrote it may have been cut: {already:?}");
    }

    #[test]
    fn a_secret_that_was_not_read_stays_where_it_is() {
        let dir = board(false);
        fs::write(dir.join("typed"), "another\n").unwrap();
        let typed = ProvisionArgs { token: Some(Source::File(dir.join("typed"))), ..args(&dir) };
        provision(&typed, &Hands::default()).unwrap();
        assert!(dir.join("boot/token").exists() && !dir.join("boot/key.pem").exists());
        // One that is there and cannot be read, as on a card that fails.
        let dir = board(false);
        fs::remove_file(dir.join("boot/token")).unwrap();
        std::os::unix::fs::symlink("token", dir.join("boot/token")).unwrap();
        let Err(Fault::Other(code, message)) = provision(&args(&dir), &Hands::default()) else {
            panic!("provisioned without its token")
        };
        assert!(code == exit::IO && message.contains("boot/token"), "{message}");
        assert!(!dir.join("conf.d").join(OVERLAY).exists() && dir.join("boot/key.pem").exists());
    }

    #[test]
    fn what_a_person_named_alike_is_not_ours() {
        for name in
            ["90-provision-notes", "90-provision-0123abcd-ca.pem.bak", "90-provision-01-token", "90-provisioned.toml"]
        {
            assert!(!is_ours(name), "{name}");
        }
        assert!(is_ours("90-provision-0123abcd-ca.pem") && is_ours(OVERLAY) && is_ours(CANDIDATE));
    }

    #[test]
    fn secrets_are_their_owners_alone() {
        let dir = board(false);
        provision(&args(&dir), &Hands::default()).unwrap();
        for entry in fs::read_dir(dir.join("conf.d")).unwrap().map(Result::unwrap) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let secret = name.ends_with("token") || name.ends_with("key.pem");
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if secret { 0o600 } else { 0o644 }, "{name}");
        }
    }
}
