use super::*;
use crate::config::{
    srp::{PortName, SrpAllow},
    vhost_user::Door,
};
use std::collections::BTreeMap;

fn parse_text(text: &str) -> Result<Config, ConfigError> {
    parse(Path::new("c.json"), text)
}

fn error(text: &str) -> String {
    Report::from(parse_text(text).unwrap_err()).to_string()
}

const GROUPS: &str = r#""portal_groups": [{"tag": 1, "listen": ["127.0.0.1"]}]"#;

fn lun(lun: &str) -> String {
    format!(
        "{{{GROUPS},\n\"targets\": [\n{{\"name\": \"iqn.2026-11.org.x:a\",\n\"luns\": [{lun}]}}]}}"
    )
}

#[test]
fn the_packaged_example_is_taken() {
    let text = include_str!("../../../packaging/config.json");
    let config = parse_text(text).unwrap();
    assert_eq!(config.targets.len(), 2);
    assert_eq!(config.targets[0].luns[1].source, Source::Ram(1 << 30));
    assert!(matches!(config.targets[1].allow, Allow::Names(ref names) if names.len() == 1));
}

#[test]
fn the_documented_example_is_taken() {
    let text = include_str!("../../../docs/configuration.md");
    let example = text.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(parse_text(example).unwrap().targets.len(), 1);
}

#[test]
fn an_unknown_key_names_line_place_and_nearest() {
    let text = lun("{\"file\": \"a\",\n\"readonly\": true}");
    let expected = "error[config-key]: c.json:5: unknown key \"readonly\" in targets[0].luns[0]\n  \
                    fix: did you mean \"read_only\"?";
    assert_eq!(error(&text), expected);
}

#[test]
fn an_unknown_key_like_no_other_lists_all() {
    let text = format!("{{{GROUPS}, \"targets\": [], \"quux\": 1}}");
    let error = error(&text);
    assert!(error.contains("unknown key \"quux\"\n"), "{error}");
    assert!(error.contains("the keys here are reactors, state_dir"), "{error}");
}

#[test]
fn a_wrong_type_names_the_key() {
    let error = error(&lun("{\"file\": \"a\", \"block_size\": \"512\"}"));
    assert!(error.contains("c.json:4:"), "{error}");
    assert!(error.contains("invalid type: string \"512\", expected u64"), "{error}");
    assert!(error.contains("(at targets[0].luns[0].block_size)"), "{error}");
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let error = error(&lun("{\"file\": \"a\", \"file\": \"b\"}"));
    assert!(error.contains("the key `file` is there twice"), "{error}");
}

#[test]
fn a_number_out_of_range_is_refused() {
    let error = error(&lun("{\"file\": \"a\", \"number\": 16384}"));
    assert!(error.contains("16384 is not in the range 0 to 16383"), "{error}");
}

#[test]
fn a_missing_key_is_named() {
    let error = error(&format!("{{{GROUPS}, \"targets\": [{{}}]}}"));
    assert!(error.contains("missing field `name` (at targets[0])"), "{error}");
}

#[test]
fn text_that_is_no_json_names_the_line() {
    let error = error("{\n\"targets\": [,]\n}");
    assert!(error.starts_with("error[config-value]: c.json:2:13: expected value"), "{error}");
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    for (text, fault) in [
        (lun("{}"), "exactly one of"),
        (lun("{\"file\": \"a\", \"ram\": \"1G\"}"), "exactly one of"),
        (lun("{\"ram\": \"1G\", \"direct\": true}"), "files and block devices only"),
        (lun("{\"ram\": \"1G\", \"number\": 1}, {\"ram\": \"1G\", \"number\": 1}"), "there twice"),
        (lun("{\"file\": \"a\", \"block_size\": 1024}"), "block size of 1024"),
        (
            format!(
                "{{{GROUPS}, \"targets\": [{{\"name\": \"iqn.2026-11.org.x\", \
                 \"portal_groups\": [2]}}]}}"
            ),
            "there is no portal group 2",
        ),
        (
            format!("{{{GROUPS}, \"iscsi\": {{\"max_burst\": 1024}}, \"targets\": []}}"),
            "is more than max_burst of 1024",
        ),
    ] {
        let error = error(&text);
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn nobody_may_log_in_unless_allowed() {
    let config = parse_text(&lun("")).unwrap();
    assert_eq!(config.targets[0].allow, Allow::Names(Vec::new()));
}

#[test]
fn portals_have_iscsis_port_unless_told() {
    for (text, expected) in [
        ("192.0.2.1", "192.0.2.1:3260"),
        ("192.0.2.1:3261", "192.0.2.1:3261"),
        ("::1", "[::1]:3260"),
        ("[::1]", "[::1]:3260"),
        ("[::1]:99", "[::1]:99"),
    ] {
        assert_eq!(portal(text).unwrap().to_string(), expected);
    }
    assert!(portal("localhost").is_err());
    assert!(portal("192.0.2.1:").is_err());
}

#[test]
fn none_switches_state_and_control_off() {
    let text =
        format!("{{{GROUPS}, \"targets\": [], \"state_dir\": \"none\", \"control\": \"/run/c\"}}");
    let config = parse_text(&text).unwrap();
    assert_eq!(config.state_dir, Place::Nowhere);
    assert_eq!(config.control, Place::At("/run/c".into()));
}

const ONE: &str = r#""targets": [{"name": "iqn.2026-11.org.x:a"}]"#;
const TWO: &str =
    r#""targets": [{"name": "iqn.2026-11.org.x:a"}, {"name": "iqn.2026-11.org.x:b"}]"#;

#[test]
fn a_controller_reaches_the_only_target() {
    let text = format!("{{\"vhost_user\": [{{\"socket\": \"/run/vscsi/vm1.sock\"}}], {ONE}}}");
    let config = parse_text(&text).unwrap();
    let [controller] = &config.controllers[..] else { panic!("{:?}", config.controllers) };
    assert_eq!((controller.name.as_str(), controller.queues), ("vm1", 4));
    assert_eq!(controller.targets, BTreeMap::from([(0, config.targets[0].name.clone())]));
    assert!(config.portal_groups.is_empty());
}

#[test]
fn a_controller_has_ids_for_several_targets() {
    let text = format!(
        r#"{{"vhost_user": [{{"socket": "/run/a", "name": "vm:1", "queues": 256, "mode": "0660",
            "targets": [{{"id": 255, "target": "iqn.2026-11.org.x:b"}}]}}], {TWO}}}"#
    );
    let config = parse_text(&text).unwrap();
    let controller = &config.controllers[0];
    assert_eq!(controller.targets, BTreeMap::from([(255, config.targets[1].name.clone())]));
    let Door::Socket(place) = &controller.door else { panic!("{:?}", controller.door) };
    assert_eq!((place.mode, controller.queues), (0o660, 256));
}

#[test]
fn a_lun_may_be_visible_to_a_controller() {
    let text = |names| {
        format!(
            "{{\"vhost_user\": [{{\"socket\": \"/run/vm1\"}}], \"targets\": [{{\"name\": \
             \"iqn.2026-11.org.x:a\", \"luns\": [{{\"ram\": \"1M\", \"visible_to\": {names}}}]}}]}}"
        )
    };
    let config = parse_text(&text("[\"vm1\", \"iqn.2026-11.org.X:i\"]")).unwrap();
    let expected = ["vm1".to_owned(), "iqn.2026-11.org.x:i".to_owned()];
    assert_eq!(config.targets[0].luns[0].visible_to.as_deref(), Some(&expected[..]));
    let error = error(&text("[\"vm2\"]"));
    assert!(error.contains("targets[0].luns[0].visible_to[0]"), "{error}");
}

#[test]
fn controllers_that_cannot_be_are_refused() {
    let controllers =
        |list: &str, targets: &str| format!("{{\"vhost_user\": [{list}], {targets}}}");
    for (text, fault) in [
        (format!("{{{ONE}}}"), "neither \"portal_groups\" nor \"vhost_user\" nor \"vfio_user\""),
        (controllers(r#"{"socket": "/a"}"#, TWO), "which of 2 targets"),
        (controllers(r#"{"socket": "/a", "targets": []}"#, ONE), "reaches no target"),
        (controllers(r#"{"socket": "/a", "queues": 257}"#, ONE), "not in the range 1 to 256"),
        (controllers(r#"{"socket": "/a", "mode": "rw"}"#, ONE), "vhost_user[0].mode"),
        (controllers(r#"{"socket": "/a", "name": "a b"}"#, ONE), "vhost_user[0].name"),
        (controllers(r#"{"socket": "/a"}, {"socket": "/a", "name": "b"}"#, ONE), "two controllers"),
        (controllers(r#"{"socket": "/a"}, {"socket": "/b/a"}"#, ONE), "are called a"),
        (
            controllers(
                r#"{"socket": "/a", "targets": [{"id": 0, "target": "iqn.2026-11.org.x:c"}]}"#,
                ONE,
            ),
            "there is no target iqn.2026-11.org.x:c",
        ),
        (
            controllers(
                r#"{"socket": "/a", "targets": [{"id": 1, "target": "iqn.2026-11.org.x:a"},
                    {"id": 1, "target": "iqn.2026-11.org.x:b"}]}"#,
                TWO,
            ),
            "id 1 names two targets",
        ),
    ] {
        let error = error(&text);
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn two_targets_may_have_a_controller_of_the_same_name() {
    let text = format!(
        r#"{{"vhost_user": [
            {{"socket": "/a/vm1", "targets": [{{"id": 0, "target": "iqn.2026-11.org.x:a"}}]}},
            {{"socket": "/b/vm1", "targets": [{{"id": 0, "target": "iqn.2026-11.org.x:b"}}]}}], {TWO}}}"#
    );
    assert_eq!(parse_text(&text).unwrap().controllers.len(), 2);
}

#[test]
fn controllers_of_both_protocols_are_one_list() {
    let of = |vfio_user: &str| {
        format!(
            r#"{{"vhost_user": [{{"socket": "/run/vm1"}}], "vfio_user": [{vfio_user}], {ONE}}}"#
        )
    };
    let config = parse_text(&of(r#"{"socket": "/run/vm2", "queues": 2}"#)).unwrap();
    let found: Vec<_> = config.controllers.iter().map(|c| (c.protocol.name(), c.queues)).collect();
    assert_eq!(found, [("vhost-user", 4), ("vfio-user", 2)]);
    for (vfio_user, fault) in [
        (r#"{"socket": "/run/vm1", "name": "b"}"#, "/run/vm1 is the socket of two controllers"),
        (r#"{"socket": "/other/vm1"}"#, "are called vm1"),
        (r#"{"socket": "/a", "mode": "rw"}"#, "vfio_user[0].mode"),
    ] {
        let error = error(&of(vfio_user));
        assert!(error.contains(fault), "{error}");
    }
    let alone = format!(r#"{{"vfio_user": [{{"socket": "/run/vm2"}}], {ONE}}}"#);
    assert_eq!(parse_text(&alone).unwrap().controllers.len(), 1);
}

fn srp(srp: &str, targets: &str) -> String {
    format!("{{\"srp\": {srp},\n{targets}}}")
}

const LISTEN: &str = r#""listen": ["192.0.2.10:5555"]"#;

#[test]
fn shared_receive_buffers_are_counted_within_bounds() {
    let with = |count: &str| {
        let rdma = format!(r#""rdma": {{"shared_receives": {count}}}, {ONE}"#);
        let ports = r#"[{"allow_any": true}]"#;
        parse_text(&srp(&format!("{{{LISTEN}, \"ports\": {ports}}}"), &rdma))
    };
    assert_eq!(with("4096").unwrap().shared_receives, Some(4096));
    assert!(with("255").is_err() && with("65537").is_err() && with("\"all\"").is_err());
}

#[test]
fn srp_alone_is_enough_and_names_ports_by_itself() {
    let ports = r#"[{"allow": ["192.0.2.7", "0x0000000000000000505400fffe123456"]}]"#;
    let config = parse_text(&srp(&format!("{{{LISTEN}, \"ports\": {ports}}}"), ONE)).unwrap();
    let [port] = &config.srp.ports[..] else { panic!("{config:?}") };
    assert_eq!(port.target, config.targets[0].name);
    assert_eq!(port.name, PortName::of_target(&port.target));
    assert!(matches!(&port.allow, SrpAllow::Only(list) if list.len() == 2));
    assert!(config.needs_rdma() && config.portal_groups.is_empty());
}

#[test]
fn a_port_of_srp_has_the_name_it_is_given_and_lets_nobody_in_unasked() {
    let port = r#"{"target": "iqn.2026-11.org.x:b", "id_ext": "0x1", "ioc_guid": "ff"}"#;
    let config = parse_text(&srp(&format!("{{{LISTEN}, \"ports\": [{port}]}}"), TWO)).unwrap();
    assert_eq!(config.srp.ports[0].name, PortName { id_ext: 1, ioc_guid: 0xFF });
    assert_eq!(config.srp.ports[0].allow, SrpAllow::Only(Vec::new()));
}

#[test]
fn faults_of_srp_are_named() {
    let ports = |ports: &str| format!("{{{LISTEN}, \"ports\": [{ports}]}}");
    let port = |target: &str| {
        format!(r#"{{"target": "iqn.2026-11.org.x:{target}", "id_ext": "1", "ioc_guid": "1"}}"#)
    };
    for (srp, targets, fault) in [
        (r#"{"listen": [], "ports": [{}]}"#.to_owned(), ONE, "no address (at srp.listen)"),
        (r#"{"listen": ["192.0.2.1"], "ports": [{}]}"#.to_owned(), ONE, "(at srp.listen[0])"),
        (ports(""), ONE, "nothing can be reached (at srp.ports)"),
        (ports("{}"), TWO, "which of 2 targets it belongs to is not said (at srp.ports[0])"),
        (ports(r#"{"target": "iqn.2026-11.org.x:c"}"#), ONE, "there is no target"),
        (ports(r#"{"id_ext": "x"}"#), ONE, "(at srp.ports[0].id_ext)"),
        (ports(r#"{"allow": ["host9"]}"#), ONE, "(at srp.ports[0].allow[0])"),
        (ports(r#"{"allow": ["::1"], "allow_any": true}"#), ONE, "\"allow\" means nothing"),
        (ports(&format!("{}, {}", port("a"), port("b"))), TWO, "ioc_guid (at srp.ports[1])"),
        (ports(&format!("{}, {}", port("b"), port("b"))), TWO, "x:b has two ports"),
        (ports(r#"{"guid": "1"}"#), ONE, "unknown key \"guid\" in srp.ports[0]"),
    ] {
        let error = error(&self::srp(&srp, targets));
        assert!(error.contains(fault), "{fault}: {error}");
    }
}

#[test]
fn a_portal_group_may_have_addresses_of_both_kinds_or_of_one() {
    let group = |keys: &str| {
        parse_text(&format!("{{\"portal_groups\": [{{\"tag\": 1, {keys}}}], {ONE}}}"))
            .map(|config| config.portal_groups[0].clone())
    };
    let both = group(r#""listen": ["192.0.2.1"], "iser": ["192.0.2.1", "[::1]:3261"]"#).unwrap();
    assert_eq!((both.listen.len(), both.iser.len()), (1, 2));
    assert_eq!(both.write_address, WriteAddress::Solicited);
    let strict = group(r#""iser": ["192.0.2.1"], "iser_write_address": "strict""#).unwrap();
    assert_eq!((strict.listen.len(), strict.write_address), (0, WriteAddress::Whole));
    for (keys, fault) in [
        (r#""listen": []"#, "there is no address"),
        (r#""listen": ["::1"], "iser_write_address": "linux""#, "no address for iSER"),
        (r#""iser": ["::1"], "iser_write_address": "rfc""#, "unknown variant `rfc`"),
    ] {
        let error = Report::from(group(keys).unwrap_err()).to_string();
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn an_empty_list_of_portal_groups_is_none_of_them() {
    let text = format!(
        "{{{GROUPS}, \"targets\": [{{\"name\": \"iqn.2026-11.org.x:a\", \"portal_groups\": []}}]}}"
    );
    assert!(!parse_text(&text).unwrap().targets[0].is_reached_by(1));
    assert!(parse_text(&lun("")).unwrap().targets[0].is_reached_by(1));
}
