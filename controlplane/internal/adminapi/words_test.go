package adminapi

import "testing"

func TestPlainly_HasNoEmptyText(t *testing.T) {
	for got, want := range map[string]string{
		plainly("must be in list [, headers, none, signed]"): "must be in list [headers, none, signed]",
		plainly("must be in list [same-law, dpf]"):           "must be in list [same-law, dpf]",
		plainly("must be greater than or equal to 0"):        "must be greater than or equal to 0",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
