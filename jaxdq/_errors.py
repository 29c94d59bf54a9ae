"""What a person is told when the input is at fault."""


class InputError(ValueError):
    """The input is at fault, and the message is one sentence a person can act on.

    It says what came, what was expected and what to do. The command line prints the sentence and exits with code 2;
    every other exception is a defect of ours and keeps its traceback.
    """
