//! The keys of RFC 7143 clause 13, RFC 7144 clause 7 and RFC 7145 clause 6, one row each.

/// Who a key is for, and by which rule its value is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Says who the peers are; no answer.
    Identity,
    /// Belongs to authentication.
    Security,
    /// The first of the offered list that is supported.
    List,
    /// Yes only if both say Yes.
    And,
    /// Yes if either says Yes.
    Or,
    /// The smaller number.
    Min,
    /// The larger number.
    Max,
    /// A number each side says of itself; no answer.
    DeclaredNumber,
    /// A yes or no that the initiator says of itself; no answer.
    DeclaredBoolean,
    /// A string each side says of itself; no answer.
    DeclaredText,
    /// Asks for target addresses.
    SendTargets,
    /// A marker key of RFC 3720: answered with No.
    ObsoleteBoolean,
    /// A marker key of RFC 3720: answered with Reject.
    ObsoleteRange,
}

/// When a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Only on the leading connection of a session (LO).
    LeadingOnly,
    /// Only in login, on every connection (IO).
    InitializeOnly,
    /// Only in full feature phase (FFPO).
    FullFeatureOnly,
    /// In login and in full feature phase (ALL).
    Any,
}

/// When a key does not matter and is answered with Irrelevant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irrelevant {
    /// It always matters.
    Never,
    /// In a discovery session.
    InDiscovery,
    /// In a discovery session, and where no unsolicited data may be sent.
    WithoutUnsolicitedData,
    /// Over TCP.
    WithoutRdma,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Which.
    pub id: KeyId,
    /// Its name on the wire; case matters.
    pub name: &'static str,
    /// Its rule.
    pub rule: Rule,
    /// When it may be used.
    pub scope: Scope,
    /// Whether only the initiator may send it.
    pub initiator_only: bool,
    /// Whether only the target may send it.
    pub target_only: bool,
    /// Lowest and highest number.
    pub range: (u32, u32),
    /// When it does not matter.
    pub irrelevant: Irrelevant,
}

/// The key of a name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl KeyId {
    /// The row of this key.
    pub const fn key(self) -> &'static Key {
        &KEYS[self as usize]
    }

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        self.key().name
    }
}

macro_rules! keys {
    ($($id:ident = $name:literal, $rule:ident, $scope:ident, $sender:ident, $range:expr, $irrelevant:ident;)*) => {
        /// Names every key; the discriminant is its row in [`KEYS`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "each variant is named after its key")]
        pub enum KeyId { $($id,)* }

        /// Every key.
        pub const KEYS: [Key; [$(KeyId::$id),*].len()] = [$(Key {
            id: KeyId::$id,
            name: $name,
            rule: Rule::$rule,
            scope: Scope::$scope,
            initiator_only: matches!(Sender::$sender, Sender::Initiator),
            target_only: matches!(Sender::$sender, Sender::Target),
            range: $range,
            irrelevant: Irrelevant::$irrelevant,
        },)*];
    };
}

enum Sender {
    Both,
    Initiator,
    Target,
}

const NONE: (u32, u32) = (0, 0);
/// The longest data segment that any key can agree on, in bytes.
pub const LONGEST_SEGMENT: u32 = 0xFF_FFFF;
const LENGTH: (u32, u32) = (512, LONGEST_SEGMENT);
const COUNT: (u32, u32) = (1, 65_535);
const SECONDS: (u32, u32) = (0, 3600);
/// 0 for any amount, or 2 and more: 1 is none of them.
pub const AMOUNT: (u32, u32) = (0, u32::MAX);

keys! {
    InitiatorName = "InitiatorName", Identity, InitializeOnly, Initiator, NONE, Never;
    InitiatorAlias = "InitiatorAlias", Identity, Any, Initiator, NONE, Never;
    TargetName = "TargetName", Identity, InitializeOnly, Both, NONE, Never;
    SessionType = "SessionType", Identity, LeadingOnly, Initiator, NONE, Never;
    TargetAlias = "TargetAlias", DeclaredText, Any, Target, NONE, Never;
    TargetAddress = "TargetAddress", DeclaredText, Any, Target, NONE, Never;
    TargetPortalGroupTag = "TargetPortalGroupTag", DeclaredText, InitializeOnly, Target, NONE, Never;
    AuthMethod = "AuthMethod", Security, InitializeOnly, Both, NONE, Never;
    ChapA = "CHAP_A", Security, InitializeOnly, Both, NONE, Never;
    ChapI = "CHAP_I", Security, InitializeOnly, Both, NONE, Never;
    ChapC = "CHAP_C", Security, InitializeOnly, Both, NONE, Never;
    ChapN = "CHAP_N", Security, InitializeOnly, Both, NONE, Never;
    ChapR = "CHAP_R", Security, InitializeOnly, Both, NONE, Never;
    HeaderDigest = "HeaderDigest", List, InitializeOnly, Both, NONE, Never;
    DataDigest = "DataDigest", List, InitializeOnly, Both, NONE, Never;
    MaxConnections = "MaxConnections", Min, LeadingOnly, Both, COUNT, InDiscovery;
    InitialR2T = "InitialR2T", Or, LeadingOnly, Both, NONE, InDiscovery;
    ImmediateData = "ImmediateData", And, LeadingOnly, Both, NONE, InDiscovery;
    MaxRecvDataSegmentLength = "MaxRecvDataSegmentLength", DeclaredNumber, Any, Both, LENGTH, Never;
    MaxBurstLength = "MaxBurstLength", Min, LeadingOnly, Both, LENGTH, InDiscovery;
    FirstBurstLength = "FirstBurstLength", Min, LeadingOnly, Both, LENGTH, WithoutUnsolicitedData;
    DefaultTime2Wait = "DefaultTime2Wait", Max, LeadingOnly, Both, SECONDS, Never;
    DefaultTime2Retain = "DefaultTime2Retain", Min, LeadingOnly, Both, SECONDS, Never;
    MaxOutstandingR2T = "MaxOutstandingR2T", Min, LeadingOnly, Both, COUNT, InDiscovery;
    DataPDUInOrder = "DataPDUInOrder", Or, LeadingOnly, Both, NONE, InDiscovery;
    DataSequenceInOrder = "DataSequenceInOrder", Or, LeadingOnly, Both, NONE, InDiscovery;
    ErrorRecoveryLevel = "ErrorRecoveryLevel", Min, LeadingOnly, Both, (0, 2), Never;
    TaskReporting = "TaskReporting", List, LeadingOnly, Both, NONE, InDiscovery;
    ProtocolLevel = "iSCSIProtocolLevel", Min, LeadingOnly, Both, (0, 31), InDiscovery;
    RdmaExtensions = "RDMAExtensions", And, LeadingOnly, Both, NONE, InDiscovery;
    TargetRecvDataSegmentLength = "TargetRecvDataSegmentLength", Min, InitializeOnly, Both, LENGTH, WithoutRdma;
    InitiatorRecvDataSegmentLength = "InitiatorRecvDataSegmentLength", Min, InitializeOnly, Both, LENGTH, WithoutRdma;
    MaxOutstandingUnexpectedPdus = "MaxOutstandingUnexpectedPDUs", DeclaredNumber, LeadingOnly, Both, AMOUNT, WithoutRdma;
    MaxAhsLength = "MaxAHSLength", DeclaredNumber, LeadingOnly, Both, AMOUNT, WithoutRdma;
    TaggedBufferForSolicitedDataOnly = "TaggedBufferForSolicitedDataOnly", DeclaredBoolean, LeadingOnly, Initiator, NONE, WithoutRdma;
    IserHelloRequired = "iSERHelloRequired", DeclaredBoolean, LeadingOnly, Initiator, NONE, WithoutRdma;
    NodeArchitecture = "X#NodeArchitecture", DeclaredText, LeadingOnly, Both, NONE, Never;
    SendTargets = "SendTargets", SendTargets, FullFeatureOnly, Initiator, NONE, Never;
    IfMarker = "IFMarker", ObsoleteBoolean, InitializeOnly, Both, NONE, Never;
    OfMarker = "OFMarker", ObsoleteBoolean, InitializeOnly, Both, NONE, Never;
    IfMarkInt = "IFMarkInt", ObsoleteRange, InitializeOnly, Both, NONE, Never;
    OfMarkInt = "OFMarkInt", ObsoleteRange, InitializeOnly, Both, NONE, Never;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_by_its_name_and_number() {
        for (row, key) in KEYS.iter().enumerate() {
            assert_eq!(key.id as usize, row);
            assert_eq!(find(key.name).map(|key| key.id), Some(key.id), "{}", key.name);
            assert!(key.name.len() <= crate::text::MAX_KEY);
        }
    }

    #[test]
    fn key_in_another_case_is_unknown() {
        assert!(find("initialr2t").is_none());
    }
}
