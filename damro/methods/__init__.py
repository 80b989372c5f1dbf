"""Decoding methods, one file each: which second prompt, and which rule makes scores of two logits.

    damro.generate(model, inputs, method=damro.methods.VCD(noise_step=700))
    damro.generate(model, inputs, method="vcd:noise_step=700")

Importing this package imports no torch.
"""

from damro.methods.avisc import AvisC
from damro.methods.base import Cost, Method, Scene
from damro.methods.code import CODE
from damro.methods.controls import LeastK, NoImage, RandomK
from damro.methods.crop import Crop
from damro.methods.damro import Damro
from damro.methods.deco import DeCo
from damro.methods.dola import DoLa
from damro.methods.drop_outliers import DropOutliers, DropRandom
from damro.methods.greedy import Greedy
from damro.methods.icd import ICD
from damro.methods.lcd import LCD
from damro.methods.m3id import M3ID
from damro.methods.only import Only
from damro.methods.opera import OPERA
from damro.methods.pai import PAI
from damro.methods.recipe import Recipe, as_recipe, labels, parse
from damro.methods.registers import Registers
from damro.methods.registry import METHODS
from damro.methods.ritual import Ritual
from damro.methods.sid import SID
from damro.methods.vcd import VCD
from damro.methods.vista import Vista
from damro.methods.vti import VTI

__all__ = [
    "CODE",
    "ICD",
    "LCD",
    "M3ID",
    "METHODS",
    "OPERA",
    "PAI",
    "SID",
    "VCD",
    "VTI",
    "AvisC",
    "Cost",
    "Crop",
    "Damro",
    "DeCo",
    "DoLa",
    "DropOutliers",
    "DropRandom",
    "Greedy",
    "LeastK",
    "Method",
    "NoImage",
    "Only",
    "RandomK",
    "Recipe",
    "Ritual",
    "Registers",
    "Scene",
    "Vista",
    "as_recipe",
    "labels",
    "parse",
]
