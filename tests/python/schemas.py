"""Says of JSON bodies whether they are what a JSON Schema asks for: the first line is the schema, each other one a body."""

import datetime
import json
import sys

import jsonschema

formats = jsonschema.FormatChecker(formats=())


@formats.checks("date-time", raises=ValueError)
def is_a_day(value):
    # How it is written, the schema's pattern says; whether there is such a day, only a calendar.
    if isinstance(value, str):
        datetime.date.fromisoformat(value[:10])
    return True


def main():
    # One body a line; what else ends a line for Python may stand within text.
    lines = sys.stdin.buffer.read().decode().split("\n")
    schema = json.loads(lines[0])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=formats)
    for line in lines[1:]:
        if line:
            print(validator.is_valid(json.loads(line)))


main()
