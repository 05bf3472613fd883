//! What TCMU devices are called, and which are ours.

use std::fmt;

/// The name of a UIO device of TCMU: `tcm-user/HBA/NAME/CONFIG`, where NAME is that of the backstore
/// in configfs and CONFIG what was written to its `dev_config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// The number of the host bus adapter: it is in `core/user_HBA/NAME`.
    pub hba: u32,
    /// The backstore's name.
    pub name: String,
    /// The subtype, and what follows it.
    pub config: String,
}

impl DeviceName {
    /// Parses the name of a UIO device. `None` if it is none of TCMU's.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.trim_end_matches('\n').strip_prefix("tcm-user/")?;
        let (hba, rest) = rest.split_once('/')?;
        let (name, config) = rest.split_once('/').unwrap_or((rest, ""));
        let hba = hba.parse().ok()?;
        let is_name = !name.is_empty();
        is_name.then(|| Self { hba, name: name.to_owned(), config: config.to_owned() })
    }

    /// What the backstore is to lead to, if its subtype is this program's.
    pub fn reference(&self) -> Option<Reference> {
        Reference::parse(&self.config)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user_{}/{}", self.hba, self.name)
    }
}

/// A logical unit as a `dev_config` names it: `vscsi/TARGET/LUN`, or `vscsi/LUN` where there is only
/// one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The target's name.
    pub target: Option<String>,
    /// The logical unit number; `None` if what stands there is no number.
    pub lun: Option<u16>,
}

impl Reference {
    /// Parses the value of a `dev_config`. `None` if its subtype is another one.
    pub fn parse(config: &str) -> Option<Self> {
        let config = config.trim_end_matches('\n');
        let rest = match config.split_once('/') {
            Some((SUBTYPE, rest)) => rest,
            None if config == SUBTYPE => "",
            _ => return None,
        };
        let (target, lun) = match rest.rsplit_once('/') {
            Some((target, lun)) => (Some(target.to_owned()), lun),
            None => (None, rest),
        };
        Some(Self { target, lun: lun.parse().ok() })
    }
}

/// The subtype of devices that this program serves.
pub const SUBTYPE: &str = "vscsi";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_hba_backstore_and_what_it_leads_to() {
        let name = DeviceName::parse("tcm-user/3/disk1/vscsi/iqn.2026-11.org.x:t/7\n").unwrap();
        assert_eq!((name.hba, name.name.as_str()), (3, "disk1"));
        assert_eq!(name.to_string(), "user_3/disk1");
        let expected = Reference { target: Some("iqn.2026-11.org.x:t".into()), lun: Some(7) };
        assert_eq!(name.reference(), Some(expected));
    }

    #[test]
    fn the_only_target_need_not_be_named() {
        let reference = |config| Reference::parse(config);
        assert_eq!(reference("vscsi/5"), Some(Reference { target: None, lun: Some(5) }));
        assert_eq!(reference("vscsi"), Some(Reference { target: None, lun: None }));
        let odd = Reference { target: Some("a/b".into()), lun: None };
        assert_eq!(reference("vscsi/a/b/x"), Some(odd));
    }

    #[test]
    fn other_devices_are_not_ours() {
        for text in [
            "",
            "other",
            "tcm-user",
            "tcm-user/",
            "tcm-user/x/d/vscsi",
            "tcm-user/1",
            "tcm-user/1/",
        ] {
            assert_eq!(DeviceName::parse(text), None, "{text}");
        }
        let foreign = DeviceName::parse("tcm-user/0/d/qcow//img").unwrap();
        assert_eq!(foreign.reference(), None);
        assert_eq!(Reference::parse("vscsi2/0"), None);
        assert_eq!(DeviceName::parse("tcm-user/0/d").unwrap().reference(), None);
    }
}
