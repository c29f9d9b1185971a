"""MQTT brokers: configuration of mosquitto, and brokers as child processes for demonstrations and tests."""
