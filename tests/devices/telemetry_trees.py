"""Machines as their /sys describes them, from public descriptions; numbers are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Tree = dict[str, str]


def write_tree(root: Path, tree: Mapping[str, str]) -> Path:
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def zones(**celsius: float | str) -> Tree:
    """Thermal zones by type, `_` for `-`."""
    tree = {}
    for number, (name, value) in enumerate(celsius.items()):
        folder = f"sys/class/thermal/thermal_zone{number}"
        tree[f"{folder}/type"] = name.replace("_", "-")
        tree[f"{folder}/temp"] = value if isinstance(value, str) else str(round(value * 1000))
    return tree


def cooling(**states: int) -> Tree:
    tree = {}
    for number, (name, state) in enumerate(states.items()):
        folder = f"sys/class/thermal/cooling_device{number}"
        tree |= {f"{folder}/type": name.replace("_", "-"), f"{folder}/cur_state": str(state)}
    return tree


def policy(cores: str, mhz: int, limit_mhz: int, greatest_mhz: int = 0) -> Tree:
    folder = f"sys/devices/system/cpu/cpufreq/policy{cores.split()[0]}"
    return {
        f"{folder}/related_cpus": cores,
        f"{folder}/scaling_cur_freq": f"{mhz}000",
        f"{folder}/scaling_max_freq": f"{limit_mhz}000",
        f"{folder}/cpuinfo_max_freq": f"{greatest_mhz or limit_mhz}000",
    }


def ina3221(hwmon: int, **rails: tuple[int, int]) -> Tree:
    """Millivolts and milliamperes of up to three channels."""
    folder = f"sys/class/hwmon/hwmon{hwmon}"
    tree = {f"{folder}/name": "ina3221"}
    for channel, (rail, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        tree[f"{folder}/in{channel}_label"] = rail
        tree[f"{folder}/in{channel}_input"] = str(millivolts)
        tree[f"{folder}/curr{channel}_input"] = str(milliamperes)
    return tree


def devfreq(folder: str, mhz: int, limit_mhz: int) -> Tree:
    return {f"{folder}/cur_freq": f"{mhz}000000", f"{folder}/max_freq": f"{limit_mhz}000000"}


def nvpmodel(number: int) -> Tree:
    return {
        "var/lib/nvpmodel/status": f"pmode:{number:04} fmode:cool",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >",
    }


ORIN_NANO: Tree = {  # Jetson Linux 36
    **zones(cpu_thermal=48.5, gpu_thermal=47.25, cv0_thermal=-256, soc0_thermal="", tj_thermal=49),
    **cooling(pwm_fan=2, cpu_throttle_alert=0, gpu_throttle_alert=0, hot_surface_alert=0),
    **policy("0 1 2 3", 729, 1510, 1728),
    **policy("4 5", 1510, 1510, 1728),
    **ina3221(1, VDD_IN=(5000, 1200), VDD_CPU_GPU_CV=(4992, 300), VDD_SOC=(4984, 280)),
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon2/name": "soctherm_oc",
    "sys/class/hwmon/hwmon2/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon2/oc3_event_cnt": "7",
    **devfreq("sys/devices/platform/17000000.gpu/devfreq_dev", 306, 612),
    "sys/devices/platform/gpu.0/load": "431",
    **nvpmodel(0),
}
XAVIER_NX: Tree = {  # Jetson Linux 35
    **zones(CPU_therm=41, GPU_therm=39.5, AUX_therm=39, AO_therm=40, PMIC_Die=50),
    **policy("0 1", 1190, 1420),
    **ina3221(4, VDD_IN=(4960, 800), VDD_CPU_GPU_CV=(4960, 200), VDD_SOC=(4960, 250)),
    **devfreq("sys/class/devfreq/17000000.gv11b", 114, 1109),
    "sys/devices/gpu.0/load": "0",
}
NANO: Tree = {  # Jetson Linux 32
    **zones(AO_therm=44.5, CPU_therm=38.5, GPU_therm=36.5, PLL_therm=36, PMIC_Die=100),
    **policy("0 1 2 3", 1479, 1479),
    **devfreq("sys/class/devfreq/57000000.gpu", 76, 921),
    **{
        f"sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/{file}": text
        for channel, (rail, milliwatts) in enumerate(
            {"POM_5V_IN": 2353, "POM_5V_GPU": 40, "POM_5V_CPU": 519}.items()
        )
        for file, text in (
            (f"rail_name_{channel}", rail),
            (f"in_power{channel}_input", str(milliwatts)),
        )
    },
}
THOR: Tree = {  # Jetson Linux 38
    **zones(cpu_thermal=51, gpu_thermal=50, tj_thermal=52.5),
    **devfreq("sys/class/devfreq/gpu-gpc-0", 1575, 1575),
    **devfreq("sys/class/devfreq/bwmgr", 4266, 4266),
    **ina3221(1, VDD_GPU=(20000, -20), VDD_CPU_SOC_MSS=(20000, 200), VIN_SYS_5V0=(5000, 1000)),
    "sys/class/hwmon/hwmon2/name": "ina238",
    "sys/class/hwmon/hwmon2/power1_input": "24500000",
}
RASPBERRY_PI_5: Tree = {
    **zones(cpu_thermal=61.2),
    **policy("0 1 2 3", 1500, 2400),
    **cooling(pwm_fan=1),
    "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "50000",
    "sys/class/hwmon/hwmon0/name": "rpi_volt",
    "sys/class/hwmon/hwmon0/in0_lcrit_alarm": "0",
}
DESKTOP: Tree = {  # x86, with performance and efficiency cores
    **zones(acpitz=27.8, x86=55),
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    **cooling(Processor=0, intel_powerclamp=-1, TCC_Offset=11, Fan=1),
    **policy("0", 5000, 5500),
    **policy("1", 4000, 5500),
    **policy("2", 3900, 4000),
    **policy("3", 3700, 4000),
    "sys/class/hwmon/hwmon3/name": "coretemp",
    "sys/class/hwmon/hwmon3/temp1_label": "Package id 0",
    "sys/class/hwmon/hwmon3/temp1_input": "56000",
    "sys/class/hwmon/hwmon3/temp2_label": "Core 0",
    "sys/class/hwmon/hwmon3/temp2_input": "99000",
    "sys/class/hwmon/hwmon4/name": "nvme",
    "sys/class/hwmon/hwmon4/temp1_label": "Composite",
    "sys/class/hwmon/hwmon4/temp1_input": "70000",
    **{f"sys/devices/system/cpu/cpu{core}/topology/physical_package_id": "0" for core in range(2)},
    **{
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count": "3"
        for core in range(2)
    },
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "5000000",
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "400000",
}
