package main

import (
	"strings"
	"testing"
)

func TestWebhooks_AreOfOneZoneAndShowTheirSecretOnce(t *testing.T) {
	d := seeded(t)
	var made struct{ Name, Secret string }
	d.must(&made, "webhook", "create", "ops", "--url", "https://hooks.example.com/bailiwick", "-o", "json")
	if made.Name != "ops" || !strings.HasPrefix(made.Secret, "whsec_") {
		t.Errorf("created %+v", made)
	}
	// A customer's webhook rests in the customer's zone, whichever node is asked.
	d.must(nil, "webhook", "create", "umbrella", "--url", "https://hooks.example.com/u", "--customer", "umbrella", "--thresholds", "90,10")
	if !strings.Contains(d.in.Zones["us"].Store.Dump(), "webhooks/umbrella") || strings.Contains(d.in.Zones["emea"].Store.Dump(), "umbrella") {
		t.Error("the webhook of a customer of us does not rest in us alone")
	}
	if out := d.must(nil, "webhook", "list", "--zone", "us"); !strings.Contains(out, "10,90") {
		t.Errorf("list: %s", out)
	}
	var rotated struct{ Secret string }
	if d.must(&rotated, "webhook", "rotate-secret", "umbrella", "--overlap", "1h", "-o", "json"); rotated.Secret == made.Secret || rotated.Secret == "" {
		t.Errorf("rotated: %+v", rotated)
	}
	d.must(nil, "alert", "list")
	before := d.state()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"webhook", "create", "ops", "--url", "https://hooks.example.com/"}, exitConflict, "WEBHOOK_EXISTS"},
		{[]string{"webhook", "create", "x", "--url", "https://127.0.0.1:9000/"}, exitFailure, "WEBHOOK_ADDRESS_REFUSED"},
		{[]string{"webhook", "create", "x", "--url", "http://169.254.169.254/latest/meta-data"}, exitFailure, "not of the public internet"},
		{[]string{"webhook", "create", "x", "--url", "http://hooks.example.com/"}, exitFailure, "it is not https"},
		{[]string{"webhook", "create", "x", "--url", "https://hooks.example.com/", "--thresholds", "0"}, exitFailure, "FIELD_INVALID"},
		{[]string{"webhook", "create", "x", "--url", "https://hooks.example.com/", "--customer", "nobody"}, exitNotFound, "CUSTOMER_NOT_FOUND"},
		{[]string{"webhook", "create", "x"}, exitUsage, "url"},
		{[]string{"webhook", "delete", "nothing"}, exitNotFound, "WEBHOOK_NOT_FOUND"},
		{[]string{"webhook", "rotate-secret", "ops", "--overlap", "999h"}, exitFailure, "OVERLAP_INVALID"},
	} {
		if code, _, errs := d.run("", c.args...); code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit %d, want %d and %s: %s", c.args, code, c.code, c.want, errs)
		}
	}
	if d.state() != before {
		t.Error("a refused command changed something")
	}
	d.must(nil, "webhook", "delete", "umbrella")
	if strings.Contains(d.in.Zones["us"].Store.Dump(), "webhooks/umbrella") {
		t.Error("a deleted webhook rests on")
	}
}
