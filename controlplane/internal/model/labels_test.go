package model_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"bailiwick/controlplane/internal/model"
)

func TestLabels_OneFormAndBounded(t *testing.T) {
	got, err := model.Labels("x", []string{"tier=1", "a-b=x_1.y-z", "team=billing"})
	if want := []string{"a-b=x_1.y-z", "team=billing", "tier=1"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := model.Labels("x", []string{}); got != nil || err != nil {
		t.Errorf("none: got %q, %v", got, err)
	}
	most := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("l%d=x", i))
		}
		return out
	}
	long := strings.Repeat("a", model.MaxLabelName) + "=" + strings.Repeat("1", model.MaxLabelValue)
	for _, good := range [][]string{most(model.MaxLabels), {long}} {
		if _, err := model.Labels("x", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range [][]string{most(model.MaxLabels + 1), {"a" + long}, {long + "1"}, {""}, {"team"}, {"team="}, {"=x"}, {"1a=x"}, {"-a=x"}, {"Team=x"}, {"team=X"}, {"team=a b"},
		{"team=.x"}, {"team=jane@example.test"}, {"team=ä"}, {"team=a=b"}, {"team=a", "team=b"}, {"team=a", "team=a"}, {"te.am=x"}, {"team=a\nb"}} {
		if got, err := model.Labels("x", bad); err == nil {
			t.Errorf("%q was taken as %q", bad, got)
		}
	}
	if err := (model.Customer{Name: "acme", Zone: "emea", Labels: []string{"b=1", "a=1"}}).Validate(); err == nil {
		t.Error("labels in another order were taken")
	}
}
