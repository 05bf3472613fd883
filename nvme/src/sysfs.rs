//! What the kernel says of a PCI function in /sys, and how a function is named.

use crate::error::OpenError;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// The address of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// Parses `DDDD:BB:DD.F` or `BB:DD.F`, in hexadecimal.
    pub fn parse(text: &str) -> Result<Self, OpenError> {
        Self::read(text).ok_or_else(|| OpenError::Address(text.to_owned()))
    }

    fn read(text: &str) -> Option<Self> {
        let (text, function) = text.rsplit_once('.')?;
        let (text, device) = text.rsplit_once(':')?;
        let (domain, bus) = text.rsplit_once(':').unwrap_or(("0", text));
        let bdf = Self {
            domain: number(domain, 8)?,
            bus: number(bus, 2)? as u8,
            device: number(device, 2)? as u8,
            function: number(function, 1)? as u8,
        };
        (bdf.device < 32 && bdf.function < 8).then_some(bdf)
    }

    /// Its folder.
    pub fn path(self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(self.to_string())
    }
}

fn number(text: &str, digits: usize) -> Option<u32> {
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && text.len() <= digits { u32::from_str_radix(text, 16).ok() } else { None }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// Checks that a function is an NVMe controller that VFIO has, behind an IOMMU.
pub fn check(bdf: Bdf) -> Result<(), OpenError> {
    check_in(&bdf.path(), bdf)
}

fn check_in(path: &Path, bdf: Bdf) -> Result<(), OpenError> {
    let class = fs::read_to_string(path.join("class")).map_err(|_| OpenError::Missing(bdf))?;
    let class = u32::from_str_radix(class.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    if class != NVME_CLASS {
        return Err(OpenError::NotNvme { bdf, class });
    }
    let driver = link(&path.join("driver"));
    // Without an IOMMU it cannot be bound, and binding is then not what helps.
    if link(&path.join("iommu_group")).is_none() {
        return Err(OpenError::NoIommu(bdf));
    }
    // Devices may have a VFIO driver of their own.
    if !driver.as_deref().is_some_and(|driver| driver.contains("vfio")) {
        return Err(OpenError::NotBound { bdf, driver });
    }
    Ok(())
}

/// The NVMe controllers of this machine, by address.
pub fn all() -> Vec<Bdf> {
    let names = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    let mut all: Vec<Bdf> = names
        .filter_map(|entry| Bdf::read(&entry.file_name().to_string_lossy()))
        .filter(|bdf| {
            !matches!(check(*bdf), Err(OpenError::NotNvme { .. } | OpenError::Missing(_)))
        })
        .collect();
    all.sort();
    all
}

/// The number of its IOMMU group.
pub fn group(bdf: Bdf) -> Option<u32> {
    link(&bdf.path().join("iommu_group"))?.parse().ok()
}

/// The other functions in its IOMMU group that keep it from being viable, with their drivers.
pub fn others(bdf: Bdf) -> Vec<String> {
    let folder = bdf.path().join("iommu_group/devices");
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut others: Vec<String> = names
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let driver = link(&entry.path().join("driver"))?;
            let harmless = driver.contains("vfio") || driver == "pcieport" || driver == "pci-stub";
            (name != bdf.to_string() && !harmless).then(|| format!("{name} ({driver})"))
        })
        .collect();
    others.sort();
    others
}

/// Whether the kernel has a device file of its own for the function, for iommufd.
pub fn has_cdev(bdf: Bdf) -> bool {
    let names = fs::read_dir(bdf.path().join("vfio-dev")).into_iter().flatten().flatten();
    names.into_iter().any(|entry| {
        Path::new("/dev/vfio/devices").join(entry.file_name()).exists()
            && Path::new("/dev/iommu").exists()
    })
}

/// The last part of where a link goes.
fn link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Mass storage, non-volatile memory, NVM Express.
const NVME_CLASS: u32 = 0x01_08_02;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn addresses_with_and_without_a_domain() {
        assert_eq!(Bdf::parse("0000:00:03.0").unwrap().to_string(), "0000:00:03.0");
        assert_eq!(Bdf::parse("3b:1f.7").unwrap().to_string(), "0000:3b:1f.7");
        assert_eq!(Bdf::parse("10000:01:00.0").unwrap().to_string(), "10000:01:00.0");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "00:03", "00:20.0", "00:03.8", "0:0:0:3.0", "x:03.0", "+1:03.0", "1:2:3.0.0"]
        {
            assert!(Bdf::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_function_is_refused_for_the_reason_that_helps() {
        let folder = std::env::temp_dir().join(format!("vscsi-nvme-sysfs-{}", std::process::id()));
        let bdf = Bdf::parse("00:03.0").unwrap();
        assert!(matches!(check_in(&folder, bdf), Err(OpenError::Missing(_))));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("class"), "0x020000\n").unwrap();
        assert!(matches!(check_in(&folder, bdf), Err(OpenError::NotNvme { class: 0x020000, .. })));
        fs::write(folder.join("class"), "0x010802\n").unwrap();
        symlink("/x/drivers/nvme", folder.join("driver")).unwrap();
        assert!(matches!(check_in(&folder, bdf), Err(OpenError::NoIommu(_))));
        symlink("/x/iommu_groups/7", folder.join("iommu_group")).unwrap();
        let error = check_in(&folder, bdf).unwrap_err();
        assert!(error.to_string().contains("not bound to vfio-pci but to nvme"), "{error}");
        assert!(error.fix().contains("echo 0000:00:03.0 > /sys/bus/pci/drivers_probe"));
        fs::remove_file(folder.join("driver")).unwrap();
        symlink("/x/drivers/vfio-pci", folder.join("driver")).unwrap();
        assert!(check_in(&folder, bdf).is_ok());
        fs::remove_dir_all(&folder).unwrap();
    }
}
