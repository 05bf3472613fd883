//! CHAP secrets: files that only their owner can read.
//!
//! One credential a line: `USER SECRET` is an initiator's, `mutual USER SECRET` the target's own,
//! which it proves to initiators that ask. Empty lines and lines that begin with `#` are skipped.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use iscsi::chap::{Algorithms, Chap, Credential, MAX_CHAP_NAME, Secret, ShortSecret};
use thiserror::Error;

use crate::report::{Exit, Report};

/// Where secrets are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// The file.
    pub path: PathBuf,
    /// It is used even though others than its owner may read it.
    pub any_mode: bool,
}

/// Why a file of secrets is not used.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The operating system refused.
    #[error("cannot read the secrets in {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} may be read by others than its owner (mode {mode:04o})", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else's file.
    #[error("{} belongs to user {uid}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Larger than any list of secrets.
    #[error("{} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line that is not a credential.
    #[error("{}:{line}: {fault}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// What is wrong. It never tells the secret.
        fault: LineFault,
    },
    /// No credential at all.
    #[error("{} has no initiator's credential", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum LineFault {
    /// Not text.
    #[error("not UTF-8")]
    Encoding,
    /// Not two words, or `mutual` and two words.
    #[error("not of the form \"USER SECRET\" or \"mutual USER SECRET\"")]
    Form,
    /// A name that is too long.
    #[error("a user name of {0} bytes where {MAX_CHAP_NAME} are allowed")]
    Name(usize),
    /// A secret that is too short.
    #[error(transparent)]
    Short(#[from] ShortSecret),
    /// The user is there already.
    #[error("user {0:?} is there twice")]
    Repeated(String),
    /// A second target credential.
    #[error("there is a second \"mutual\" line")]
    SecondMutual,
    /// Both directions have the same secret.
    #[error("the mutual secret is an initiator's too")]
    SharedSecret,
}

impl From<SecretError> for Report {
    fn from(error: SecretError) -> Self {
        let what = error.to_string();
        match error {
            SecretError::Io { source, .. } => Self::new(Exit::of(&source), "secrets", what),
            SecretError::Open { path, .. } => Self::new(Exit::Permission, "secrets-readable", what)
                .why("whoever reads a secret can log in with it")
                .fix(format!("chmod 600 {}", path.display())),
            SecretError::Foreign { path, .. } => {
                Self::new(Exit::Permission, "secrets-foreign", what)
                    .why("its owner could change who may log in")
                    .fix(format!("chown the file {} to the user of vscsi", path.display()))
            }
            SecretError::TooLarge { .. } | SecretError::Empty { .. } => {
                Self::new(Exit::Config, "secrets", what).fix("write one \"USER SECRET\" a line")
            }
            SecretError::Line { fault: LineFault::Short(_), .. } => {
                Self::new(Exit::Config, "secrets", what).fix("openssl rand -hex 16")
            }
            SecretError::Line { .. } => Self::new(Exit::Config, "secrets", what),
        }
    }
}

/// Reads the credentials of a file.
pub fn read(file: &SecretFile, algorithms: Algorithms) -> Result<Chap, SecretError> {
    let path = &file.path;
    let io = |source| SecretError::Io { path: path.clone(), source };
    let mut open = File::open(path).map_err(io)?;
    let meta = open.metadata().map_err(io)?;
    // A service manager hands credentials out with an access list, which shows as a group mode.
    let trusted = file.any_mode
        || std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| path.starts_with(dir));
    if !trusted {
        let own = nix::unistd::geteuid().as_raw();
        if meta.uid() != own && meta.uid() != 0 {
            return Err(SecretError::Foreign { path: path.clone(), uid: meta.uid() });
        }
        if meta.mode() & 0o077 != 0 {
            return Err(SecretError::Open { path: path.clone(), mode: meta.mode() & 0o7777 });
        }
    }
    let mut text = Vec::new();
    Read::by_ref(&mut open).take(MAX_FILE + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_FILE {
        return Err(SecretError::TooLarge { path: path.clone() });
    }
    parse(path, &text, algorithms)
}

fn parse(path: &Path, text: &[u8], algorithms: Algorithms) -> Result<Chap, SecretError> {
    let mut chap = Chap { initiators: Vec::new(), target: None, algorithms };
    let mut names = BTreeSet::new();
    for (index, line) in text.split(|&b| b == b'\n').enumerate() {
        let fail = |fault| SecretError::Line { path: path.to_owned(), line: index + 1, fault };
        let line = str::from_utf8(line).map_err(|_| fail(LineFault::Encoding))?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let (mutual, name, secret) = match words[..] {
            [name, secret] => (false, name, secret),
            ["mutual", name, secret] => (true, name, secret),
            _ => return Err(fail(LineFault::Form)),
        };
        if name.len() > MAX_CHAP_NAME {
            return Err(fail(LineFault::Name(name.len())));
        }
        let secret = Secret::new(secret).map_err(|error| fail(error.into()))?;
        let credential = Credential { name: name.to_owned(), secret };
        if mutual {
            if chap.target.replace(credential).is_some() {
                return Err(fail(LineFault::SecondMutual));
            }
        } else if !names.insert(name.to_owned()) {
            return Err(fail(LineFault::Repeated(name.to_owned())));
        } else {
            chap.initiators.push(credential);
        }
        if let Some(own) = &chap.target
            && chap.initiators.iter().any(|other| other.secret == own.secret)
        {
            return Err(fail(LineFault::SharedSecret));
        }
    }
    match chap.initiators.is_empty() {
        true => Err(SecretError::Empty { path: path.to_owned() }),
        false => Ok(chap),
    }
}

const MAX_FILE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn fault(text: &str) -> LineFault {
        match parse(Path::new("f"), text.as_bytes(), Algorithms::ALL) {
            Err(SecretError::Line { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn initiators_and_the_target_have_credentials() {
        let text = b"# who\n\nhost9 0123456789ab\n mutual san abcdef012345 \n";
        let chap = parse(Path::new("f"), text, Algorithms::ALL).unwrap();
        assert_eq!(chap.initiators.len(), 1);
        assert_eq!(chap.initiators[0].name, "host9");
        assert_eq!(chap.target.unwrap().name, "san");
    }

    #[test]
    fn faulty_lines_are_named() {
        assert_eq!(fault("host9"), LineFault::Form);
        assert_eq!(fault("a b c"), LineFault::Form);
        assert_eq!(fault("a 0123456789a"), LineFault::Short(ShortSecret(11)));
        assert_eq!(fault("a 0123456789ab\na 0123456789ab"), LineFault::Repeated("a".into()));
        assert_eq!(fault("a 0123456789ab\nmutual b 0123456789ab"), LineFault::SharedSecret);
    }

    #[test]
    fn an_error_never_tells_the_secret() {
        let error = parse(Path::new("f"), b"a hunter2", Algorithms::ALL).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_others_can_read_is_refused_unless_told() {
        let path = std::env::temp_dir().join(format!("vscsi-secrets-{}", std::process::id()));
        fs::write(&path, "a 0123456789ab\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut file = SecretFile { path: path.clone(), any_mode: false };
        let refused = read(&file, Algorithms::ALL);
        file.any_mode = true;
        let taken = read(&file, Algorithms::ALL);
        fs::remove_file(&path).unwrap();
        assert!(matches!(refused, Err(SecretError::Open { mode: 0o640, .. })));
        assert!(taken.is_ok());
    }
}
