package model

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of labels. Those of regions and APIs rest in every zone, so there is no room in one for a sentence, or an address.
const (
	MaxLabels     = 16
	MaxLabelName  = 32
	MaxLabelValue = 63
)

// Labels puts labels in their one form: NAME=VALUE, sorted, each name once. None is nil.
func Labels(what string, labels []string) ([]string, error) {
	if len(labels) == 0 {
		return nil, nil
	}
	if len(labels) > MaxLabels {
		return nil, bad("spec.labels", "LABELS_INVALID", "%s has %d labels, at most %d are kept", what, len(labels), MaxLabels)
	}
	out := slices.Sorted(slices.Values(labels))
	for i, l := range out {
		name, value, ok := strings.Cut(l, "=")
		if !ok || !labelWord(name, MaxLabelName, "-") || name[0] < 'a' || !labelWord(value, MaxLabelValue, "-._") {
			return nil, bad(fmt.Sprintf("spec.labels[%d]", slices.Index(labels, l)), "LABELS_INVALID",
				"%s: label %q is not NAME=VALUE, a NAME of a lower-case letter and at most %d more of a-z, 0-9 and -, a VALUE of 1 to %d of a-z, 0-9, -, . and _", what, l, MaxLabelName-1, MaxLabelValue)
		}
		if i > 0 && strings.HasPrefix(out[i-1], name+"=") {
			return nil, bad("spec.labels", "LABELS_INVALID", "%s has two labels %s", what, name)
		}
	}
	return out, nil
}

func labelWord(s string, most int, also string) bool {
	if s == "" || len(s) > most || strings.IndexByte(also, s[0]) >= 0 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(also, c) < 0 {
			return false
		}
	}
	return true
}

// checkLabels refuses labels in any form but their one.
func checkLabels(what string, labels []string) error {
	want, err := Labels(what, labels)
	if err == nil && !slices.Equal(want, labels) {
		err = bad("spec.labels", "LABELS_INVALID", "%s: its labels are not in order", what)
	}
	return err
}
