package adminapi

// Patient is patient, with a stall that a test can wait for.
var Patient = patient
