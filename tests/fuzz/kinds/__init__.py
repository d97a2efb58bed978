"""Every kind of input that comes from outside."""

from tests.fuzz.kinds.models import MODEL_KINDS
from tests.fuzz.kinds.recipes import RECIPE_KINDS
from tests.fuzz.kinds.results import RESULT_KINDS
from tests.fuzz.kinds.runs import RUN_KINDS
from tests.fuzz.kinds.texts import TEXT_KINDS

KINDS = {kind.name: kind for kind in (*MODEL_KINDS, *RECIPE_KINDS, *RESULT_KINDS, *RUN_KINDS, *TEXT_KINDS)}
