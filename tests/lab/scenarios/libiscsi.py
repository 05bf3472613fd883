"""libiscsi's conformance suite, `iscsi-test-cu`, held to a checked-in list of skips.

The suite counts a skipped test as passed, so its output is read test by test. What it may skip is
in `tests/libiscsi-skips.txt`, and what it fails by a fault of its own in `libiscsi-failures.txt`;
both lists are exact both ways. Debian's libiscsi 1.19 knows
`header_digest` only: data digests are tested by the guest and by the `login` scenario.

Two URLs of one LUN make its multipath tests run. The rest has one: with two, Sanitize.Reservations
leaves a RESERVE(6) of the other session behind, and Sanitize.Reset meets it.
"""

from cunit import judge, parse_cunit
from harness import check
from targets import Chap, Lun

# The suite sleeps for minutes.
BESIDE = True
SIZE = 100 << 20
# Sanitize.Reset wants a SANITIZE that is still going after four seconds and three resets: this is
# eight seconds for one pass. Then it waits for a minute.
ERASE_RATE = "12M"
# GetLBAStatus.UnmapSingle asks for the block at i + 1 and expects an answer that starts at
# i + logical blocks per physical block, which is the same only when that is one.
ONE = 512
READING = (
    "GetLBAStatus", "Inquiry", "Mandatory", "ModeSense6", "NoMedia", "Prefetch10", "Prefetch16",
    "PrinReadKeys", "PrinServiceactionRange", "PrinReportCapabilities", "ProutRegister",
    "ProutClear", "ProutPreempt", "Read6", "Read10", "Read12", "Read16", "ReadCapacity10",
    "ReadCapacity16", "ReadDefectData10", "ReadDefectData12", "ReadOnly",
    "ReportSupportedOpcodes", "Reserve6", "StartStopUnit", "TestUnitReady", "Verify10", "Verify12",
    "Verify16", "iSCSIcmdsn", "iSCSIdatasn",
)
SUITE_SECONDS = 420


def run_tests(lab, target, tests, query="", paths=1):
    """What became of the tests of this name, `{"Suite.Test": Outcome}`."""
    urls = [target.url(query=query)] * paths
    done = lab.run("iscsi-test-cu", "-d", "-S", "-v", "-t", tests, *urls,
                   timeout=SUITE_SECONDS, ok=False)
    output = lab.scratch / f"iscsi-test-cu-{tests}.txt"
    output.write_text(done.stdout + done.stderr)
    return parse_cunit(done.stdout)


def run_suite(lab, kind, lun, chap=None, query="", families=(), reactors=None):
    """Runs the family ALL, or these only, against `lun` and compares what it skipped with the
    list."""
    lab.requires_program("iscsi-test-cu")
    # While Sanitize.Reset sleeps it answers no ping, and then wants its session to be there.
    target = lab.target([lun], chap=chap, iscsi={"ping_after": 90}, reactors=reactors)
    outcomes = {}
    for tests in [f"ALL.{family}" for family in families] or ["ALL"]:
        outcomes |= run_tests(lab, target, tests, query)
    if not families:
        outcomes |= run_tests(lab, target, "ALL.MultipathIO", query, paths=2)
    check(len(outcomes) > (len(families) or 200), f"only {len(outcomes)} tests ran")
    judge(lab, kind, outcomes)
    check(target.alive(), "the target died")


def thin(lab, **options):
    """A thin LUN of 512-byte blocks."""
    return Lun(path=lab.image("thin.img", SIZE), physical_block_size=ONE, erase_rate=ERASE_RATE,
               **options)


def test_suite_on_a_thin_lun(lab):
    """Everything, plain."""
    run_suite(lab, "thin", thin(lab))


def test_suite_with_chap(lab):
    """Everything, after a CHAP login."""
    run_suite(lab, "thin", thin(lab),
              chap=Chap("lab-user", "lab-secret-12"))


def test_suite_with_header_digest(lab):
    """Everything, with CRC32C over each header."""
    run_suite(lab, "thin", thin(lab), query="?header_digest=crc32c")


def test_suite_on_a_read_only_lun(lab):
    """The write-protection family, and all others whose tests do not want to write."""
    run_suite(lab, "read-only", thin(lab, read_only=True), families=READING)


def test_suite_on_a_removable_lun(lab):
    """The families about media that can be ejected and locked.

    PreventAllow.ITNexusLoss closes its connection and at once expects a new session, which is of
    another ISID, to find its removal prevention gone. Only one reactor sees both in that order.
    """
    run_suite(lab, "removable", thin(lab, removable=True), reactors=1)


def test_suite_on_a_lun_of_4096_byte_blocks(lab):
    """Everything, where a block is not a sector."""
    lun = Lun(path=lab.image("4k.img", SIZE), block_size=4096, erase_rate=ERASE_RATE)
    run_suite(lab, "4k", lun)


def test_families_that_look_at_physical_blocks(lab):
    """512-byte blocks on the 4096-byte ones that a file has."""
    run_suite(lab, "512e", Lun(path=lab.image("512e.img", SIZE)),
              families=("CompareAndWrite", "Inquiry", "ReadCapacity16", "Unmap", "WriteSame10",
                        "WriteSame16"))


def test_families_that_need_ram(lab):
    """What a file cannot promise: writes that a power failure does not tear."""
    run_suite(lab, "ram", Lun(size=SIZE), families=("WriteAtomic16", "Inquiry"))
