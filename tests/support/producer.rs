//! A local program that hands in records and keeps its own books: what it was told is committed and under which name,
//! and what it was told nothing about.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// Records handed in before the first answer is read: their answers fit into the socket's buffer many times over.
pub const PIPELINE_MAX: usize = 64;

/// An agent that keeps a producer waiting longer than this has forgotten it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A record that the agent has promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// What it says.
    pub body: Vec<u8>,
    /// Its lane, as answered.
    pub lane: String,
    /// Its epoch, as answered.
    pub epoch: u64,
    /// Its number, as answered.
    pub seq: u64,
}

/// What became of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// Every record was answered.
    Answered,
    /// The connection broke before the last answer; what was not answered is in [`Producer::uncertain`].
    Broken,
    /// Nobody listens; nothing was handed in.
    NoAgent,
}

/// A producer and its books.
pub struct Producer {
    socket: PathBuf,
    lane: Option<String>,
    wait: Option<&'static str>,
    stream: Option<BufReader<UnixStream>>,
    /// Told to be committed, in the order of handing in.
    pub committed: Vec<Committed>,
    /// Handed in and never answered: stored or not, but never twice. A body is never handed in again.
    pub uncertain: Vec<Vec<u8>>,
    /// Answered with an error (its code): never stored.
    pub refused: Vec<(Vec<u8>, String)>,
}

impl Producer {
    /// A producer for this lane (`None`: the default one). It connects when it has something to say.
    pub fn new(socket: &Path, lane: Option<&str>) -> Self {
        Self {
            socket: socket.into(),
            lane: lane.map(Into::into),
            wait: None,
            stream: None,
            committed: Vec::new(),
            uncertain: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Waits for `committed` even in a lane that commits later.
    pub fn wait_committed(mut self) -> Self {
        self.wait = Some("committed");
        self
    }

    /// Hands in one record.
    pub fn put(&mut self, topic: &str, body: impl Into<Vec<u8>>) -> Handed {
        self.put_all(vec![(topic.into(), body.into())])
    }

    /// Hands in a batch of (topic, body), pipelined, and reads the answers. A body that is UTF-8 goes as text, another
    /// one as base64.
    ///
    /// # Panics
    /// When an answer is not what the documentation says, or does not come though the agent lives.
    pub fn put_all(&mut self, records: Vec<(String, Vec<u8>)>) -> Handed {
        assert!(records.len() <= PIPELINE_MAX, "a batch of {} records", records.len());
        let mut request = String::new();
        for (topic, body) in &records {
            request.push_str(&self.request(topic, body).to_string());
            request.push('\n');
        }
        // A connection whose agent has gone since takes not one byte: then nothing was handed in, and it is opened anew.
        let kept = self.stream.take().and_then(|stream| hand_in(stream, &request));
        let fresh = || connect(&self.socket).and_then(|stream| hand_in(stream, &request));
        let Some(mut stream) = kept.or_else(fresh) else { return Handed::NoAgent };
        let mut bodies = records.into_iter().map(|(_, body)| body);
        while let Some(answer) = if bodies.len() == 0 { None } else { read_answer(&mut stream) } {
            let body = bodies.next().expect("as many answers as requests are read");
            self.note(body, &answer);
        }
        if bodies.len() == 0 {
            self.stream = Some(stream);
            return Handed::Answered;
        }
        self.uncertain.extend(bodies);
        Handed::Broken
    }

    /// How many records it has handed in.
    pub fn handed_in(&self) -> usize {
        self.committed.len() + self.uncertain.len() + self.refused.len()
    }

    fn request(&self, topic: &str, body: &[u8]) -> Value {
        let mut put = json!({ "topic": topic });
        match std::str::from_utf8(body) {
            Ok(text) => put["text"] = text.into(),
            Err(_) => put["base64"] = data_encoding::BASE64.encode(body).into(),
        }
        if let Some(lane) = &self.lane {
            put["lane"] = lane.as_str().into();
        }
        if let Some(wait) = self.wait {
            put["wait"] = wait.into();
        }
        json!({ "put": put })
    }

    fn note(&mut self, body: Vec<u8>, answer: &Value) {
        if let Some(name) = answer.get("committed") {
            let lane = name["lane"].as_str().expect("an answer names the lane").to_owned();
            let epoch = name["epoch"].as_u64().expect("an answer names the epoch");
            let seq = name["seq"].as_u64().expect("an answer names the seq");
            self.committed.push(Committed { body, lane, epoch, seq });
        } else if let Some(error) = answer.get("error") {
            let code = error["code"].as_str().expect("an error has a code");
            self.refused.push((body, code.into()));
        } else {
            panic!("neither committed nor an error: {answer}");
        }
    }
}

fn connect(socket: &Path) -> Option<BufReader<UnixStream>> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout can be set");
    Some(BufReader::new(stream))
}

/// Writes; `None` when not one byte was taken. Where it breaks later there may still be answers, and they count.
fn hand_in(mut stream: BufReader<UnixStream>, request: &str) -> Option<BufReader<UnixStream>> {
    let taken = stream.get_mut().write(request.as_bytes()).ok()?;
    let _broken = stream.get_mut().write_all(&request.as_bytes()[taken..]);
    Some(stream)
}

/// The next answer; `None` when the agent is gone. Half a line is no answer.
fn read_answer(stream: &mut BufReader<UnixStream>) -> Option<Value> {
    let mut line = String::new();
    match stream.read_line(&mut line) {
        Ok(_) if line.ends_with('\n') => {
            Some(serde_json::from_str(&line).expect("an answer is one JSON object a line"))
        }
        Ok(_) => None,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("no answer within {ANSWER_TIMEOUT:?}")
        }
        Err(_) => None,
    }
}
