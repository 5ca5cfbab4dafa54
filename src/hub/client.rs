//! Requests to a hub, and what its answers say about a file.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Method, Response, Uri, header},
};

use super::name::{RepoId, check_path, is_commit};
use crate::error::{Error, Result};

/// The hub that is asked unless another one is named.
pub const ENDPOINT: &str = "https://huggingface.co";
/// Hops that a request is sent on over.
const HOPS: usize = 6;
/// Lists of files and JSON answers are far smaller.
const LONGEST_ANSWER: u64 = 64 << 20;

/// What proves to a hub who asks. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// From an environment variable or a file; nothing if that is empty or can't be a token.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())).then(|| Self(text.into()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How long a slow or absent hub is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, and for each answer and each read of a body.
    pub answer: Duration,
    /// Before the first new try; twice as long before each further one.
    pub retry: Duration,
    /// Tries in a row that bring nothing.
    pub tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { answer: Duration::from_secs(30), retry: Duration::from_millis(500), tries: 5 }
    }
}

/// Speaks to one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    pub patience: Patience,
}

/// The hash that a file's content is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Digest {
    /// Of the content: files of Git LFS, which all weights are.
    Sha256(String),
    /// Of the content behind git's header for it: small files.
    Git(String),
    /// Some other name, which says nothing of the content.
    Unknown,
}

/// What a hub says of a file, before any of it is fetched.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub commit: String,
    /// The name of its blob.
    pub etag: String,
    pub digest: Digest,
    pub size: u64,
}

/// A file of a repository, as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its path.
    pub path: String,
    /// Its size, where the hub says so.
    pub size: Option<u64>,
}

/// A repository, as the hub lists it.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit that the revision is now.
    pub commit: String,
    /// Its files whose names can't lead out of a folder, by path.
    pub files: Vec<Listed>,
    /// What the model's page says its licence is.
    pub licence: Option<String>,
}

#[derive(Deserialize)]
struct RawListing {
    sha: String,
    #[serde(default)]
    siblings: Vec<RawFile>,
    #[serde(default, rename = "cardData")]
    card: Option<RawCard>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct RawCard {
    license: Option<serde_json::Value>,
}

/// Why a request brought nothing.
pub(super) enum Trouble {
    /// Asking again may help.
    Passing(String),
    /// It won't.
    Lasting(Error),
}

impl Client {
    pub fn new(endpoint: &str, token: Option<Token>, patience: Patience) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("sora/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(patience.answer))
            .timeout_recv_response(Some(patience.answer))
            .timeout_per_read(Some(patience.answer))
            .build()
            .into();
        Self { agent, endpoint: endpoint.trim_end_matches('/').to_owned(), token, patience }
    }

    fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Where a file's content is, at a revision or commit.
    pub fn url(&self, repo: &RepoId, revision: &str, path: &str) -> String {
        let path: Vec<String> = path.split('/').map(escape).collect();
        let revision = escape(revision);
        format!("{}/{}/{}/resolve/{revision}/{}", self.endpoint, repo.owner, repo.name, path.join("/"))
    }

    /// What the hub has of a repository.
    pub fn listing(&self, repo: &RepoId) -> Result<Listing> {
        let revision = escape(&repo.revision);
        let url = format!(
            "{}/api/models/{}/{}/revision/{revision}?blobs=true",
            self.endpoint, repo.owner, repo.name
        );
        let text = self.patiently(&repo.to_string(), || {
            let mut answer = self.follow(&Method::GET, &url, None, Redirects::All)?;
            self.check(&answer, repo, None)?;
            let body = answer.body_mut().with_config().limit(LONGEST_ANSWER);
            body.read_to_vec().map_err(|e| Trouble::Passing(e.to_string()))
        })?;
        let odd = |why: String| self.odd(&repo.to_string(), why);
        let raw: RawListing = serde_json::from_slice(&text)
            .map_err(|e| odd(format!("its list of files can't be read: {e}")))?;
        if !is_commit(&raw.sha) {
            return Err(odd("it names no commit".into()));
        }
        let mut files: BTreeMap<String, Option<u64>> = BTreeMap::new();
        for file in raw.siblings {
            if check_path(&file.rfilename).is_ok() {
                files.insert(file.rfilename, file.size);
            }
        }
        let licence = raw.card.and_then(|card| card.license).and_then(|value| match value {
            serde_json::Value::String(name) => Some(name),
            _ => None,
        });
        let files = files.into_iter().map(|(path, size)| Listed { path, size }).collect();
        Ok(Listing { commit: raw.sha, files, licence })
    }

    /// What the hub says of one file at a revision or commit.
    pub fn look(&self, repo: &RepoId, revision: &str, path: &str) -> Result<Remote> {
        let url = self.url(repo, revision, path);
        let what = format!("{path} of {repo}");
        let seen = self.patiently(&what, || {
            let mut seen = Seen::default();
            let answer = self.follow(&Method::HEAD, &url, None, Redirects::Own(&mut seen))?;
            // A redirect to where the content is stored answers the question.
            if !answer.status().is_redirection() {
                self.check(&answer, repo, Some(path))?;
            }
            Ok(seen)
        })?;
        let odd = |why: &str| self.odd(&what, why.into());
        let commit = seen.commit.or_else(|| is_commit(revision).then(|| revision.to_owned()));
        let commit = commit.filter(|commit| is_commit(commit)).ok_or_else(|| odd("it names no commit"))?;
        let etag = seen.linked_etag.or(seen.etag).ok_or_else(|| odd("it names no hash of the content"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        // It becomes the name of a file.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if etag.is_empty() || etag.len() > 128 || !etag.chars().all(plain) {
            return Err(odd("its hash of the content is none"));
        }
        let size = seen.linked_size.or(seen.size).ok_or_else(|| odd("it names no size"))?;
        let hex = etag.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
        let digest = match etag.len() {
            64 if hex => Digest::Sha256(etag.clone()),
            40 if hex => Digest::Git(etag.clone()),
            _ => Digest::Unknown,
        };
        Ok(Remote { commit, etag, digest, size })
    }

    /// A file's content from byte `start` on, up to before `end` if there is one.
    ///
    /// Gives the answer, and the byte it really starts with.
    pub fn content(
        &self,
        repo: &RepoId,
        revision: &str,
        path: &str,
        range: (u64, Option<u64>),
    ) -> Result<(Response<Body>, u64), Trouble> {
        let (start, end) = range;
        let range = match end {
            Some(end) => Some(format!("bytes={start}-{}", end.saturating_sub(1))),
            None => (start > 0).then(|| format!("bytes={start}-")),
        };
        let url = self.url(repo, revision, path);
        let answer = self.follow(&Method::GET, &url, range.as_deref(), Redirects::All)?;
        self.check(&answer, repo, Some(path))?;
        let first = match answer.status().as_u16() {
            206 => {
                let range = text(answer.headers(), header::CONTENT_RANGE.as_str()).unwrap_or_default();
                let first =
                    range.strip_prefix("bytes ").and_then(|range| range.split('-').next()?.parse().ok());
                first.ok_or_else(|| Trouble::Passing(format!("the hub sent the range `{range}`")))?
            }
            _ => 0,
        };
        Ok((answer, first))
    }

    /// Tries again while that may help.
    pub fn patiently<T>(&self, what: &str, mut ask: impl FnMut() -> Result<T, Trouble>) -> Result<T> {
        let mut wait = self.patience.retry;
        let mut tries = 1;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing(why)) if tries >= self.patience.tries => {
                    return Err(self.unreachable(what, why));
                }
                Err(Trouble::Passing(_)) => {}
            }
            std::thread::sleep(wait);
            wait *= 2;
            tries += 1;
        }
    }

    pub fn unreachable(&self, what: &str, why: String) -> Error {
        let hint = format!(
            "check the connection to {} and run the same command again: it goes on where it stopped; with --offline \
             only what is cached is used",
            self.endpoint
        );
        Error::Hub { what: what.into(), why, hint }
    }

    fn odd(&self, what: &str, why: String) -> Error {
        let hint = format!("is {} a model hub? HF_ENDPOINT says where it is", self.endpoint);
        Error::Hub { what: what.into(), why: format!("the hub's answer is odd: {why}"), hint }
    }

    /// Sends a request on to wherever it is sent.
    fn follow(
        &self,
        method: &Method,
        url: &str,
        range: Option<&str>,
        mut redirects: Redirects<'_>,
    ) -> Result<Response<Body>, Trouble> {
        let lasting = |why: String| Trouble::Lasting(self.odd(url, why));
        let own = origin(url).ok_or_else(|| lasting(format!("`{url}` is no address")))?;
        let mut url = url.to_owned();
        for _ in 0..HOPS {
            let mut request = match *method {
                Method::HEAD => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            // Ranges and sizes are those of the content as it is.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            // The token is the hub's business alone.
            let at_home = origin(&url).is_some_and(|at| at == own);
            if let (true, Some(Token(token))) = (at_home, &self.token) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|e| Trouble::Passing(e.to_string()))?;
            if let Redirects::Own(seen) = &mut redirects {
                seen.add(answer.headers(), at_home);
            }
            let location = text(answer.headers(), header::LOCATION.as_str());
            let (true, Some(location)) = (answer.status().is_redirection(), location) else {
                return Ok(answer);
            };
            let next = if location.starts_with('/') && !location.starts_with("//") {
                let base = origin(&url).unwrap_or_else(|| own.clone());
                format!("{base}{location}")
            } else {
                location
            };
            let Some(at) = origin(&next) else {
                return Err(lasting(format!("it sends on to `{next}`")));
            };
            if own.starts_with("https:") && !at.starts_with("https:") {
                return Err(lasting(format!("it sends on to {at}, which isn't encrypted")));
            }
            if matches!(redirects, Redirects::Own(_)) && at != own {
                return Ok(answer);
            }
            url = next;
        }
        Err(lasting("it sends on and on".into()))
    }

    /// What an answer's status means for a user.
    fn check(&self, answer: &Response<Body>, repo: &RepoId, path: Option<&str>) -> Result<(), Trouble> {
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let what = path.map_or_else(|| repo.to_string(), |path| format!("{path} of {repo}"));
        let fail =
            |why: String, hint: String| Err(Trouble::Lasting(Error::Hub { what: what.clone(), why, hint }));
        let page = format!("{}/{}", self.endpoint, repo.id());
        match status.as_u16() {
            401 | 403 if self.has_token() => fail(
                format!("the hub refuses your token ({})", status.as_u16()),
                format!(
                    "open {page} with your account and accept its terms, or set HF_TOKEN to a token that may read it"
                ),
            ),
            401 | 403 => fail(
                format!(
                    "the hub wants to know who asks ({}): it is private, gated or not there",
                    status.as_u16()
                ),
                format!(
                    "check the name; if {page} asks for it, accept its terms there and set HF_TOKEN to a token from \
                     {}/settings/tokens",
                    self.endpoint
                ),
            ),
            404 => {
                let code = text(answer.headers(), "x-error-code").unwrap_or_default();
                let missing = match (code.as_str(), path) {
                    ("RevisionNotFound", _) => format!("there is no revision `{}`", repo.revision),
                    ("RepoNotFound", _) | (_, None) => format!("there is no repository {} (404)", repo.id()),
                    (_, Some(path)) => {
                        format!("there is no file {path} at revision `{}` (404)", repo.revision)
                    }
                };
                fail(
                    missing,
                    format!("check the spelling at {page}; `sora models list` shows what is known here"),
                )
            }
            416 => Err(Trouble::Passing("the hub has no such range".into())),
            408 | 425 | 429 | 500..=599 => Err(Trouble::Passing(format!("the hub answers {status}"))),
            _ => fail(format!("the hub answers {status}"), format!("look at {page}")),
        }
    }
}

/// What becomes of an answer that sends on.
enum Redirects<'a> {
    /// All are followed.
    All,
    /// Those within the hub are followed, and what they say is kept.
    Own(&'a mut Seen),
}

/// What the answers on the way to a file say of it.
#[derive(Default)]
struct Seen {
    commit: Option<String>,
    linked_etag: Option<String>,
    linked_size: Option<u64>,
    etag: Option<String>,
    size: Option<u64>,
}

impl Seen {
    fn add(&mut self, headers: &HeaderMap, at_home: bool) {
        if !at_home {
            return;
        }
        self.commit = self.commit.take().or_else(|| text(headers, "x-repo-commit"));
        self.linked_etag = self.linked_etag.take().or_else(|| text(headers, "x-linked-etag"));
        let size = |name: &str| text(headers, name)?.parse().ok();
        self.linked_size = self.linked_size.or_else(|| size("x-linked-size"));
        // Of these two only the last answer's are the file's own.
        self.etag = text(headers, header::ETAG.as_str());
        self.size = size(header::CONTENT_LENGTH.as_str());
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// Scheme, host and port of an HTTP address.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    Some(format!("{scheme}://{}", uri.authority()?))
}

/// A part of a path in an address.
fn escape(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_escaped() {
        let client = Client::new("http://127.0.0.1:1/", None, Patience::default());
        let repo = RepoId::new("a/b", "refs/pr/1").unwrap();
        assert_eq!(
            client.url(&repo, &repo.revision, "x y/é#?.json"),
            "http://127.0.0.1:1/a/b/resolve/refs%2Fpr%2F1/x%20y/%C3%A9%23%3F.json"
        );
        assert_eq!(origin("https://h:1/x").as_deref(), Some("https://h:1"));
        assert_eq!(origin("file:///etc/passwd"), None);
    }

    #[test]
    fn tokens_are_never_shown() {
        let token = Token::new(" hf_secret\n").unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(Token::new("").is_none() && Token::new("a\r\nb").is_none());
    }
}
