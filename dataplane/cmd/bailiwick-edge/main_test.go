package main

import (
	"flag"
	"strings"
	"testing"
	"time"
)

// Each option may come from the environment; the command line has the last word, and what is no option is said.
func TestEnvironment_SaysWhatTheCommandLineDoesNot(t *testing.T) {
	options := func() (flags *flag.FlagSet, name *string, n *int, drain *time.Duration) {
		flags = flag.NewFlagSet("x", flag.ContinueOnError)
		return flags, flags.String("log-format", "text", "text or json"), flags.Int("max-streams", 7, "how many"), flags.Duration("upstream-drain", time.Minute, "for how long")
	}
	flags, name, n, drain := options()
	if err := flags.Parse([]string{"-max-streams", "1"}); err != nil {
		t.Fatal(err)
	}
	unknown, err := fromEnvironment(flags, []string{"HOME=/", "BAILIWICK_EDGE_LOG_FORMAT=json", "BAILIWICK_EDGE_MAX_STREAMS=2", "BAILIWICK_EDGES=3",
		"BAILIWICK_EDGE_UPSTREAM_DRAIN=5s", "BAILIWICK_EDGE_SERVICE_PORT=443"})
	if err != nil {
		t.Fatal(err)
	}
	if len(unknown) != 1 || unknown[0] != "BAILIWICK_EDGE_SERVICE_PORT" {
		t.Errorf("%v are said to be no options", unknown)
	}
	if *name != "json" || *n != 1 || *drain != 5*time.Second {
		t.Errorf("got %q, %d, %v, want json, 1 as the command line says, 5s", *name, *n, *drain)
	}
	flags, _, _, _ = options()
	if _, err := fromEnvironment(flags, []string{"BAILIWICK_EDGE_MAX_STREAMS=secret"}); err == nil || !strings.Contains(err.Error(), "-max-streams") || strings.Contains(err.Error(), "secret") {
		t.Errorf("no number: got %v", err)
	}
}

// Where the log is JSON its last line is too, whatever ends the process.
func TestRun_LastWordIsTheLogs(t *testing.T) {
	for _, c := range []struct {
		args, environ []string
		json          bool
	}{
		{[]string{"-log-format", "json", "-public", "nowhere"}, nil, true},
		{[]string{"-public", "nowhere"}, []string{"BAILIWICK_EDGE_LOG_FORMAT=json"}, true},
		{[]string{"-log-format", "json"}, nil, true}, // no name, no directory
		{[]string{"-public", "nowhere"}, nil, false},
	} {
		log, err := run(t.Context(), c.args, c.environ)
		if err == nil || (log != nil) != c.json {
			t.Errorf("%v: got %v, %v", c.args, log, err)
		}
	}
}
