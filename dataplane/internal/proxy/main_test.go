package proxy_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain runs more tests at once than there are CPUs, of those that may: they wait for limits and ends.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
