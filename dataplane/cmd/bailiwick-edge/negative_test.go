package main

import (
	"context"
	"strings"
	"testing"
)

func TestRun_RefusesOptionsBelowNothing(t *testing.T) {
	for _, args := range [][]string{{"-cache-bytes", "-5"}, {"-max-in-flight", "-1"}, {"-upstream-drain", "-1s"}, {"-access-log-sample", "-0.5"}, {"-traces-ratio", "NaN"}, {"-busy-poll", "-1µs"}} {
		if _, err := run(context.Background(), args, nil); err == nil || !strings.Contains(err.Error(), args[0]+" "+args[1]+" is less than nothing") {
			t.Errorf("%s: got %v", args, err)
		}
	}
	if _, err := run(context.Background(), []string{"-cache-bytes", "0", "-traces-ratio", "0", "-version"}, nil); err != nil {
		t.Errorf("nothing below nothing: got %v", err)
	}
}
