package adminapi

import (
	"strings"
	"testing"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// Each value that an edge can tell has words of its own for people, but for OTHER, which sends them to the edge.
func TestAiling_HasWordsForEachValue(t *testing.T) {
	said := map[string]string{}
	unlike := func(what, words string) {
		t.Helper()
		if was, ok := said[words]; ok || words == "" {
			t.Errorf("%s and %s are both %q", what, was, words)
		}
		said[words] = what
	}
	for n, name := range syncv1.UsageRefusal_name {
		if n == 0 {
			continue
		}
		got := ailing(&syncv1.Status{UsageTrouble: &syncv1.UsageTrouble{Why: syncv1.UsageRefusal(n), Epoch: 7}})
		if len(got) != 1 || strings.Contains(got[0], seeLog) != (name == "USAGE_REFUSAL_OTHER") {
			t.Errorf("%s: %q", name, got)
		}
		unlike(name, strings.Join(got, "|"))
	}
	for n, name := range syncv1.CheckpointRefusal_name {
		got := ailing(&syncv1.Status{CheckpointRefusal: syncv1.CheckpointRefusal(n)})
		if (len(got) == 1) != (n > 0) || n > 0 && strings.Contains(got[0], seeLog) != (name == "CHECKPOINT_REFUSAL_OTHER") {
			t.Errorf("%s: %q", name, got)
		}
		if n > 0 {
			unlike(name, strings.Join(got, "|"))
		}
	}
	for n, name := range syncv1.VerdictReason_name {
		if got := verdictWords(&syncv1.RegionVerdict{Reason: syncv1.VerdictReason(n), Against: 1, Observers: 2}); n > 0 {
			unlike(name, got)
		}
	}
	if got := ailing(&syncv1.Status{SentinelViolations: 3}); len(got) != 1 || !strings.Contains(got[0], "stopped 3 times") {
		t.Errorf("a sentinel's count: %q", got)
	}
}
