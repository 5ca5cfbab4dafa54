//! A hub in this process: loopback only, one repository, faults on demand.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use sha1::Digest as _;

pub const REPO: &str = "acme/tiny-video";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with the content of a file; each counts down its number of times.
#[derive(Clone, Copy)]
pub enum Fault {
    /// The connection ends after so many bytes.
    Cut(usize),
    /// A byte has another value.
    Flip,
    /// The server is busy.
    Busy,
}

/// A request that was made.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Whether it went to where content is stored, not to the hub itself.
    pub at_store: bool,
}

/// How the hub behaves.
#[derive(Default)]
pub struct Behaviour {
    /// Only this token may read.
    pub token: Option<String>,
    /// Faults of single files, by path.
    pub faults: BTreeMap<String, Vec<Fault>>,
    /// Names that are listed without being there.
    pub listed: Vec<String>,
    /// Stands instead of every file's hash.
    pub etag: Option<String>,
    /// Stands instead of the commit.
    pub commit: Option<String>,
    /// Where content is said to be stored.
    pub store: Option<String>,
    /// Whether ranges are ignored.
    pub no_ranges: bool,
    /// Waits between pieces of content, so that two programs meet.
    pub slow: bool,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    behaviour: Mutex<Behaviour>,
    asked: Mutex<Vec<Asked>>,
    stop: AtomicBool,
    store: String,
}

pub struct FakeHub {
    state: Arc<State>,
    addresses: Vec<String>,
    threads: Vec<JoinHandle<()>>,
}

/// More than any test needs: a client that asks forever ends, too.
const MOST_REQUESTS: usize = 2000;

impl FakeHub {
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listeners: Vec<TcpListener> =
            (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let addresses: Vec<String> =
            listeners.iter().map(|l| l.local_addr().expect("an address").to_string()).collect();
        let state = Arc::new(State {
            files,
            behaviour: Mutex::default(),
            asked: Mutex::default(),
            stop: AtomicBool::new(false),
            store: format!("http://{}", addresses[1]),
        });
        let serve = |(listener, at_store): (TcpListener, bool)| {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().take(MOST_REQUESTS) {
                    if state.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let state = state.clone();
                    std::thread::spawn(move || {
                        // A client that hangs up is one of the things that are tested.
                        let _ = state.answer(&stream.expect("a connection"), at_store);
                    });
                }
            })
        };
        let threads = listeners.into_iter().zip([false, true]).map(serve).collect();
        Self { state, addresses, threads }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addresses[0])
    }

    pub fn behave(&self) -> MutexGuard<'_, Behaviour> {
        lock(&self.state.behaviour)
    }

    /// The next requests for a file's content go wrong in these ways.
    pub fn fail(&self, path: &str, faults: &[Fault]) {
        self.behave().faults.insert(path.into(), faults.to_vec());
    }

    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.state.asked).clone()
    }

    /// The requests to the store for the content of a file.
    pub fn stored(&self, path: &str) -> Vec<Asked> {
        let name = sha256(&self.state.files[path]);
        self.asked().into_iter().filter(|asked| asked.at_store && asked.path.contains(&name)).collect()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for address in &self.addresses {
            drop(TcpStream::connect(address));
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("the server didn't panic");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

pub fn git_hash(bytes: &[u8]) -> String {
    let mut git = sha1::Sha1::new();
    git.update(format!("blob {}\0", bytes.len()));
    git.update(bytes);
    hex(&git.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string can be written");
        text
    })
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".gguf") || path.ends_with(".model")
}

impl State {
    fn answer(&self, mut stream: &TcpStream, at_store: bool) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut lines = BufReader::new(stream).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (mut range, mut authorization) = (None, None);
        for line in lines.take(100) {
            let line = line?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.trim().to_owned()),
                "authorization" => authorization = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        if path.is_empty() {
            return Ok(());
        }
        let asked = Asked { method: method.into(), path: path.into(), range, authorization, at_store };
        lock(&self.asked).push(asked.clone());
        let answer = if at_store { self.stored(&asked) } else { self.hub(&asked) };
        let Answer { status, headers, body, cut } = answer;
        let mut head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").expect("a string can be written");
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if asked.method == "HEAD" {
            return stream.flush();
        }
        let slow = lock(&self.behaviour).slow;
        for piece in body[..cut.unwrap_or(body.len()).min(body.len())].chunks(64 << 10) {
            stream.write_all(piece)?;
            if slow {
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        stream.flush()?;
        // What the client still sends is read, so that closing doesn't take back what was sent.
        stream.shutdown(std::net::Shutdown::Write)?;
        let _ = stream.read(&mut [0; 64]);
        Ok(())
    }

    fn hub(&self, asked: &Asked) -> Answer {
        let behaviour = lock(&self.behaviour);
        let wanted = behaviour.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some() && asked.authorization != wanted {
            return Answer::status("401 Unauthorized").with("x-error-code", "GatedRepo");
        }
        let commit = behaviour.commit.clone().unwrap_or_else(|| COMMIT.into());
        let path = asked.path.split('?').next().unwrap_or_default();
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let known = rest.split_once("/revision/").filter(|(repo, _)| *repo == REPO);
            return match known {
                Some((_, "main" | COMMIT)) => Answer::json(&self.listing(&behaviour, &commit)),
                Some(_) => Answer::status("404 Not Found").with("x-error-code", "RevisionNotFound"),
                None => Answer::status("404 Not Found").with("x-error-code", "RepoNotFound"),
            };
        }
        let resolved = path.strip_prefix(&format!("/{REPO}/resolve/")).and_then(|rest| rest.split_once('/'));
        let Some((revision, file)) = resolved else {
            return Answer::status("404 Not Found").with("x-error-code", "RepoNotFound");
        };
        let Some(bytes) =
            self.files.get(file).filter(|_| ["main", COMMIT, commit.as_str()].contains(&revision))
        else {
            return Answer::status("404 Not Found").with("x-error-code", "EntryNotFound");
        };
        drop(behaviour);
        if is_large(file) {
            let behaviour = lock(&self.behaviour);
            let etag = behaviour.etag.clone().unwrap_or_else(|| sha256(bytes));
            let store = behaviour.store.clone().unwrap_or_else(|| self.store.clone());
            return Answer::status("302 Found")
                .with("Location", &format!("{store}/content/{}?file={file}", sha256(bytes)))
                .with("x-repo-commit", &commit)
                .with("x-linked-etag", &format!("\"{etag}\""))
                .with("x-linked-size", &bytes.len().to_string());
        }
        let answer = self.content(file, bytes, asked);
        let etag = lock(&self.behaviour).etag.clone().unwrap_or_else(|| git_hash(bytes));
        answer.with("x-repo-commit", &commit).with("ETag", &format!("W/\"{etag}\""))
    }

    fn listing(&self, behaviour: &Behaviour, commit: &str) -> serde_json::Value {
        let files = self.files.iter().map(|(path, bytes)| {
            serde_json::json!({ "rfilename": path, "size": bytes.len(), "blobId": git_hash(bytes) })
        });
        let listed = behaviour.listed.iter().map(|path| serde_json::json!({ "rfilename": path, "size": 3 }));
        let files: Vec<_> = files.chain(listed).collect();
        serde_json::json!({ "id": REPO, "sha": commit, "siblings": files, "cardData": { "license": "mit" } })
    }

    fn stored(&self, asked: &Asked) -> Answer {
        let name = asked.path.strip_prefix("/content/").and_then(|path| path.split('?').next());
        match self.files.iter().find(|(_, bytes)| Some(sha256(bytes).as_str()) == name) {
            Some((path, bytes)) => self.content(path, bytes, asked),
            None => Answer::status("404 Not Found"),
        }
    }

    fn content(&self, path: &str, bytes: &[u8], asked: &Asked) -> Answer {
        let mut behaviour = lock(&self.behaviour);
        let faults = behaviour.faults.get_mut(path).filter(|_| asked.method == "GET");
        let fault = faults.filter(|faults| !faults.is_empty()).map(|faults| faults.remove(0));
        let mut body = bytes.to_vec();
        match fault {
            Some(Fault::Busy) => return Answer::status("503 Service Unavailable"),
            Some(Fault::Flip) => {
                let last = body.len() - 1;
                body[last] ^= 1;
            }
            _ => {}
        }
        let cut = match fault {
            Some(Fault::Cut(at)) => Some(at),
            _ => None,
        };
        let range = asked.range.as_deref().filter(|_| !behaviour.no_ranges);
        let Some((start, end)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
            return Answer { body, cut, ..Answer::status("200 OK") };
        };
        let start: usize = start.parse().expect("a number");
        let end = end.parse::<usize>().map_or(body.len(), |last| (last + 1).min(body.len()));
        if start >= end {
            return Answer::status("416 Range Not Satisfiable");
        }
        let range = format!("bytes {start}-{}/{}", end - 1, body.len());
        let part = Answer { body: body[start..end].to_vec(), cut, ..Answer::status("206 Partial Content") };
        part.with("Content-Range", &range)
    }
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes after which the connection ends.
    cut: Option<usize>,
}

impl Answer {
    fn status(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self { body: value.to_string().into_bytes(), ..Self::status("200 OK") }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}
