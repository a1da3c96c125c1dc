//! Load, clocks, power and temperature of a GPU, from NVIDIA's management library, which comes with
//! the driver and is loaded at run time.

use crate::ops::GpuMemory;
use anyhow::{Result, anyhow};
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use std::fmt;

/// Returns the version of the driver: `580.159.04`. `None` without one.
pub fn driver_version() -> Option<String> {
    Nvml::init().ok()?.sys_driver_version().ok()
}

/// The state of a GPU at one moment. Numbers that the GPU does not report are `None`: GPUs in
/// servers have no fan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuState {
    /// Share of the last sample period (about a second) in which any kernel ran.
    pub compute_percent: Option<u32>,
    /// Share of that period in which memory was read or written.
    pub memory_percent: Option<u32>,
    pub fan_percent: Option<u32>,
    pub clock_mhz: Option<u32>,
    pub max_clock_mhz: Option<u32>,
    pub power_watts: Option<f32>,
    pub power_limit_watts: Option<f32>,
    pub temperature_celsius: Option<u32>,
    /// Reasons why the clock is not higher; empty if it is as high as it goes.
    pub throttled_by: Option<Vec<&'static str>>,
}

/// `compute 99 % | memory 41 % | fan n/a | 1755 / 1980 MHz | 698 / 700 W | 61 C | throttled: power
/// limit`
impl fmt::Display for GpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn shown<T: fmt::Display>(value: Option<T>, unit: &str) -> String {
            value.map_or_else(|| "n/a".to_string(), |v| format!("{v}{unit}"))
        }
        fn of<T: fmt::Display>(value: Option<T>, most: Option<T>, unit: &str) -> String {
            match most {
                Some(most) if value.is_some() => format!("{} / {most}{unit}", shown(value, "")),
                _ => shown(value, unit),
            }
        }
        let watts = |watts: Option<f32>| watts.map(|w| w.round() as u32);
        write!(
            f,
            "compute {} | memory {} | fan {} | {} | {} | {} | {}",
            shown(self.compute_percent, " %"),
            shown(self.memory_percent, " %"),
            shown(self.fan_percent, " %"),
            of(self.clock_mhz, self.max_clock_mhz, " MHz"),
            of(watts(self.power_watts), watts(self.power_limit_watts), " W"),
            shown(self.temperature_celsius, " C"),
            match self.throttled_by.as_deref() {
                None => "throttling n/a".to_string(),
                Some([]) => "not throttled".to_string(),
                Some(reasons) => format!("throttled: {}", reasons.join(", ")),
            }
        )
    }
}

/// Reports the state of one GPU.
pub struct Monitor {
    nvml: Nvml,
    pci_bus_id: String,
}

impl Monitor {
    /// Opens NVML for the GPU at the PCI address that
    /// [`Nvidia::pci_bus_id`](super::nvidia::Nvidia::pci_bus_id) returns. Numbers would not do:
    /// NVML counts GPUs in another order and ignores `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// One line, if there is no driver or no such GPU.
    pub fn open(pci_bus_id: &str) -> Result<Self> {
        let nvml = Nvml::init().map_err(|e| anyhow!("the state of the GPU (NVML): {e}"))?;
        nvml.device_by_pci_bus_id(pci_bus_id).map_err(|e| anyhow!("GPU {pci_bus_id} (NVML): {e}"))?;
        Ok(Monitor { nvml, pci_bus_id: pci_bus_id.to_string() })
    }

    /// Returns the version of the driver: `580.65.06`.
    ///
    /// # Errors
    /// One line, if NVML does not report it.
    pub fn driver_version(&self) -> Result<String> {
        self.nvml.sys_driver_version().map_err(|e| anyhow!("the version of the driver (NVML): {e}"))
    }

    /// Returns the memory in use, if the GPU reports it.
    pub fn memory(&self) -> Option<GpuMemory> {
        let gpu = self.nvml.device_by_pci_bus_id(self.pci_bus_id.as_str()).ok()?;
        let info = gpu.memory_info().ok()?;
        let processes = gpu.running_compute_processes().unwrap_or_default();
        let own = processes.iter().find(|process| process.pid == std::process::id());
        let process = own.and_then(|process| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        });
        Some(GpuMemory { process, used: info.used, free: info.free })
    }

    /// Returns everything that the GPU reports, which is nothing if it has gone.
    pub fn state(&self) -> GpuState {
        let Ok(gpu) = self.nvml.device_by_pci_bus_id(self.pci_bus_id.as_str()) else {
            return GpuState::default();
        };
        let load = gpu.utilization_rates().ok();
        let watts = |milliwatts: u32| milliwatts as f32 / 1000.0;
        GpuState {
            compute_percent: load.as_ref().map(|l| l.gpu),
            memory_percent: load.as_ref().map(|l| l.memory),
            fan_percent: gpu.fan_speed(0).ok(),
            clock_mhz: gpu.clock_info(Clock::SM).ok(),
            max_clock_mhz: gpu.max_clock_info(Clock::SM).ok(),
            power_watts: gpu.power_usage().ok().map(watts),
            power_limit_watts: gpu.enforced_power_limit().ok().map(watts),
            temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok(),
            throttled_by: gpu.current_throttle_reasons().ok().map(names),
        }
    }
}

fn names(reasons: ThrottleReasons) -> Vec<&'static str> {
    let named = [
        (ThrottleReasons::GPU_IDLE, "idle"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "clock setting"),
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware"),
        (ThrottleReasons::SYNC_BOOST, "another GPU"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature (hardware)"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power supply"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display clock setting"),
    ];
    named.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_busy_gpu() {
        let state = GpuState {
            compute_percent: Some(99),
            memory_percent: Some(41),
            fan_percent: None,
            clock_mhz: Some(1755),
            max_clock_mhz: Some(1980),
            power_watts: Some(697.6),
            power_limit_watts: Some(700.0),
            temperature_celsius: Some(61),
            throttled_by: Some(names(ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN)),
        };
        assert_eq!(
            state.to_string(),
            "compute 99 % | memory 41 % | fan n/a | 1755 / 1980 MHz | 698 / 700 W | 61 C | throttled: power limit, \
             temperature (hardware)"
        );
        let cool = GpuState { throttled_by: Some(names(ThrottleReasons::empty())), ..GpuState::default() };
        assert!(cool.to_string().ends_with("| n/a | n/a | n/a | not throttled"));
    }

    #[test]
    fn without_a_driver_it_is_one_line() {
        let error = Monitor::open("00000000:00:00.0").err().expect("no GPU has this address").to_string();
        assert!(!error.contains('\n') && error.contains("NVML"), "{error}");
    }
}
