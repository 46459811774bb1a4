"""What answers amount to beyond their rates: suites graded in their own ways, principles kept, arms set apart."""
