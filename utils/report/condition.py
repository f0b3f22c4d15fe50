"""Conditions on the columns of a table: comparisons of columns and literals, and nothing else.

They may come from the markers of a markdown file that somebody else wrote. So a condition is read
with ``ast``, and every part of it that is not in the grammar is refused:

    condition:  condition and condition, condition or condition, not condition, (condition),
                a comparison, or the name of a column of True and False
    comparison: value < value, with ==, !=, <, <=, >, >=, also a < b < c;
                value in [literal, ...], value not in [literal, ...]
    value:      the name of a column, or a literal: a number, "text", True, False
"""

import ast
import operator

import pandas as pd

from utils.errors import UserError

LONGEST = 2000  # characters
COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda column, values: column.isin(values),
    ast.NotIn: lambda column, values: ~column.isin(values),
}


def evaluate(table: pd.DataFrame, condition: str) -> pd.Series:
    """For which rows the condition holds.

    Raises:
        UserError: it is none, or names no column.
    """
    if len(condition) > LONGEST:
        raise UserError(f"it has more than {LONGEST} characters")
    try:
        tree = ast.parse(condition.strip(), mode="eval")
        return _mask(tree.body, table)
    except (SyntaxError, ValueError, TypeError, OverflowError) as error:
        raise UserError(str(error)) from None
    except (RecursionError, MemoryError):
        raise UserError("it is nested too deeply") from None


def _mask(node, table):
    """The rows, as booleans, of one part of a condition."""
    if isinstance(node, ast.BoolOp):
        both = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        mask = _mask(node.values[0], table)
        for part in node.values[1:]:
            mask = both(mask, _mask(part, table))
        return mask
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_mask(node.operand, table)
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
        mask = pd.Series(True, table.index)
        for left, comparison, right in zip(parts, node.ops, parts[1:], strict=False):
            mask &= _compare(left, comparison, right, table)
        return mask
    value = _value(node, table)
    if not isinstance(value, pd.Series) or value.dtype != bool:
        raise UserError(_no_condition(node))
    return value


def _compare(left, comparison, right, table):
    if type(comparison) not in COMPARISONS:
        raise UserError(_no_condition(comparison))
    left = _value(left, table)
    if isinstance(comparison, (ast.In, ast.NotIn)):
        if not isinstance(right, (ast.List, ast.Tuple)) or not isinstance(left, pd.Series):
            raise UserError('"in" is written column in [literal, ...]')
        right = [_literal(part) for part in right.elts]
    else:
        right = _value(right, table)
    result = COMPARISONS[type(comparison)](left, right)
    return result if isinstance(result, pd.Series) else pd.Series(result, table.index)


def _value(node, table):
    """A column or a literal."""
    if isinstance(node, ast.Name):
        if node.id not in table:
            raise UserError(f"name {node.id!r} is not defined")
        return table[node.id]
    return _literal(node)


def _literal(node):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand)
        if isinstance(value, (int, float)):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
        return node.value
    raise UserError(_no_condition(node))


def _no_condition(node) -> str:
    return f"{type(node).__name__} is no part of a condition"
