"""Where and in which order the stages run; the `transfer` command. No science here."""
