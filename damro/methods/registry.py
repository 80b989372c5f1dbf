"""Which methods there are. A method of another package comes by an entry point of the group ``damro.methods``."""

from __future__ import annotations

from damro.decoding.errors import ParameterError
from damro.methods.base import Method
from damro.registry import Registry

METHODS: Registry[type[Method]] = Registry(
    "damro.methods",
    "method",
    ParameterError,
    {
        "greedy": "damro.methods.greedy:Greedy",
        "damro": "damro.methods.damro:Damro",
        "random-k": "damro.methods.controls:RandomK",
        "least-k": "damro.methods.controls:LeastK",
        "no-image": "damro.methods.controls:NoImage",
        "crop": "damro.methods.crop:Crop",
        "drop-outliers": "damro.methods.drop_outliers:DropOutliers",
        "drop-random": "damro.methods.drop_outliers:DropRandom",
        "registers": "damro.methods.registers:Registers",
        "vcd": "damro.methods.vcd:VCD",
        "icd": "damro.methods.icd:ICD",
        "m3id": "damro.methods.m3id:M3ID",
        "dola": "damro.methods.dola:DoLa",
        "vista": "damro.methods.vista:Vista",
        "deco": "damro.methods.deco:DeCo",
        "vti": "damro.methods.vti:VTI",
        "only": "damro.methods.only:Only",
        "opera": "damro.methods.opera:OPERA",
        "pai": "damro.methods.pai:PAI",
        "avisc": "damro.methods.avisc:AvisC",
        "sid": "damro.methods.sid:SID",
        "lcd": "damro.methods.lcd:LCD",
        "code": "damro.methods.code:CODE",
        "ritual": "damro.methods.ritual:Ritual",
    },
    Method,
)
"""The methods by name."""
