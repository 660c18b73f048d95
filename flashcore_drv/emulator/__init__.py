"""Runs the PTX of a kernel on the CPU and says where the kernel is wrong. It knows nothing of attention."""

from flashcore_drv.emulator.errors import EmulationError
from flashcore_drv.emulator.machine import Checks, Limits, launch
from flashcore_drv.emulator.memory import DeviceMemory
from flashcore_drv.emulator.parser import Program, parse
from flashcore_drv.emulator.report import Report

__all__ = ["Checks", "DeviceMemory", "EmulationError", "Limits", "Program", "Report", "launch", "parse"]
