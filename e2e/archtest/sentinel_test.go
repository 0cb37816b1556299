package archtest_test

import "testing"

// The second opinion on the border is worth what it does not share with the first.
func TestSentinel_SharesNoCodeWithTheFirstCheck(t *testing.T) {
	found := false
	for _, p := range list(t, "./dataplane/internal/sentinel/...") {
		found = true
		for _, imp := range p.Imports {
			if under(imp, "regions", "proto/gen", "shared/identity", "dataplane/internal/failover", "dataplane/internal/relay", "dataplane/internal/proxy") {
				t.Errorf("%s imports %s: it reads grants, names and pairs by itself", p.ImportPath, imp)
			}
		}
	}
	if !found {
		t.Error("there is no sentinel: the rule checks nothing")
	}
}
